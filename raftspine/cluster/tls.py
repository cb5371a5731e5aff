"""Mutual TLS between nodes, where the operator has certificates.

The rule: either end shows a certificate of the cluster's own authority, TLS 1.3 and nothing older. TLS adds
secrecy; who a node is stays the business of the handshake under it, so certificates need no host names and a
public authority must never be the one named here.
"""

import ssl
from pathlib import Path

from raftspine.cluster.peers import Tls
from raftspine.errors import Misuse


def tls_from_files(cert: Path, key: Path, ca: Path) -> Tls:
    """Contexts for both directions from PEM files. Misuse when one cannot be used."""
    try:
        server = _context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca)
        client = _context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca)
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        raise Misuse(f"TLS between nodes: cannot use {cert}, {key} or {ca}: {error}") from error
    return Tls(server, client)


def _context(protocol: int, cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(cert, key)
    context.load_verify_locations(ca)
    return context
