"""The report's style sheet: light and dark as the reader prefers, one column, readable on a phone and in print."""

CSS = """
:root{--bg:#fbfbf9;--card:#fff;--ink:#1c2126;--soft:#5b6670;--line:#d9dee3;--grid:#e8ebee;
--ok:#2f6fab;--refused:#c77700;--refused-bg:#fbe3bd;--unknown:#8c3f86;--unknown-bg:#f0d9ee;
--good:#1d6b3c;--good-bg:#e2f2e7;--bad:#a1261d;--bad-bg:#fbe5e2;--open:#7a5a00;--open-bg:#fbf0cf;--band:#2f6fab33}
@media(prefers-color-scheme:dark){:root{--bg:#14181c;--card:#1c2227;--ink:#e7ebee;--soft:#9aa7b2;--line:#333c44;
--grid:#272e35;--ok:#6aaee6;--refused:#f0a640;--refused-bg:#4a3514;--unknown:#d98fd2;--unknown-bg:#48294a;
--good:#7fd3a0;--good-bg:#173424;--bad:#ff9a8f;--bad-bg:#4a1f1b;--open:#f1cf6a;--open-bg:#40340f;--band:#6aaee633}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:860px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:1.5rem;margin:0 0 2px;letter-spacing:-.01em}h2{font-size:1.12rem;margin:38px 0 8px}
p{margin:6px 0}.soft{color:var(--soft)}code{font:0.9em ui-monospace,Menlo,Consolas,monospace}
.verdict{display:flex;gap:16px;align-items:flex-start;border:1px solid;border-radius:10px;padding:16px 18px;
margin:18px 0}
.verdict b{font-size:1.15rem;display:block}.verdict .mark{font-size:1.9rem;line-height:1.1}
.v-ok{background:var(--good-bg);border-color:var(--good)}.v-ok .mark,.s-ok{color:var(--good)}
.v-violation{background:var(--bad-bg);border-color:var(--bad)}.v-violation .mark,.s-violation{color:var(--bad)}
.v-unknown{background:var(--open-bg);border-color:var(--open)}.v-unknown .mark,.s-unknown{color:var(--open)}
.cards{display:grid;grid-template-columns:repeat(3,1fr);gap:10px;margin:14px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.card b{font-size:1.35rem;display:block;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:.86rem}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 10px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}th{font-weight:600;font-size:.86rem;color:var(--soft)}td.n,th.n{text-align:right}
td.state{white-space:nowrap;font-weight:600}td small{display:block;color:var(--soft)}
figure{margin:10px 0 18px}figcaption{color:var(--soft);font-size:.9rem;margin:4px 2px}
svg{display:block;width:100%;min-width:620px;height:auto}
svg text{fill:var(--ink);font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
svg .name{font-weight:600}svg .small,svg .note{font-size:11px;fill:var(--soft)}svg .note{fill:var(--ink)}
svg .halo,svg .note{paint-order:stroke;stroke:var(--card);stroke-width:3px;fill:var(--ink)}
.axis{stroke:var(--soft);stroke-width:1}.grid{stroke:var(--grid);stroke-width:1}
.ok{fill:var(--ok)}.refused{fill:url(#refused);stroke:var(--refused);stroke-width:.7}
.unknown{fill:url(#unknown);stroke:var(--unknown);stroke-width:.7}
.refused-back{fill:var(--refused-bg)}.refused-line{fill:var(--refused)}
.unknown-back{fill:var(--unknown-bg)}.unknown-dot{fill:var(--unknown)}.down{fill:url(#down)}.down-line{fill:var(--line)}
.gap{fill:none;stroke:var(--bad);stroke-width:1.6}.leader{fill:var(--ink)}
.culprit{fill:var(--bad-bg);stroke:var(--bad);stroke-width:2}
.band{fill:var(--band)}.median{fill:none;stroke:var(--ok);stroke-width:1.8}
.p99{fill:none;stroke:var(--ok);stroke-width:1.1;stroke-dasharray:4 3}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:.88rem;color:var(--soft);margin:6px 2px}
.key svg{display:inline-block;width:16px;min-width:0;height:12px;vertical-align:-1px;margin-right:6px}
.broken{border-left:4px solid var(--bad);padding:2px 0 2px 14px;margin:18px 0}
@media(max-width:560px){.cards{grid-template-columns:repeat(2,1fr)}main{padding:18px 12px 40px}.verdict{padding:12px}}
@media print{body{background:#fff}.scroll{overflow:visible;border:0}svg{min-width:0}}
"""
