"""How nodes talk: authenticated links, and calls over them (design notes: LINKS.md)."""
