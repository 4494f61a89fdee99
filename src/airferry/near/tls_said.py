"""What Git, pip and APT say where a server speaks no TLS, or TLS alone, or has a certificate of an unknown CA.

Each says it in other words, by the library that it was built with, and none says what to change.
"""

from __future__ import annotations

import re

# of OpenSSL in two spellings, and of GnuTLS
_NO_TLS = re.compile(r"wrong[ _]version[ _]number|record[ _]layer[ _]failure|unexpected TLS packet", re.IGNORECASE)
_UNTRUSTED = re.compile(
    r"certificate[ _]verif\w+[ _]failed|SSL certificate problem|certificate is NOT trusted", re.IGNORECASE
)
# what is left of a connection with plain HTTP to a server that speaks TLS: Go and nginx say 400, others hang up
_CUT = re.compile(
    r"error:? 400\b|400 +Bad Request|Empty reply from server|HTTP/0\.9|BadStatusLine|RemoteDisconnected|"
    r"closed without a reply|ConnectionResetError|Connection reset by peer",
    re.IGNORECASE,
)


def tls_trouble(text: str, *, url: str, where: str, ca: str) -> tuple[str, str] | None:
    """Return what is wrong with the scheme or the certificate by what a program said, and what to do; else None.

    `where` completes "write … there", `ca` is what makes the program trust a CA. `url` may be just a scheme.
    """
    if _UNTRUSTED.search(text):
        return "its certificate is not trusted", f"if its CA is private: {ca}"
    if _NO_TLS.search(text):
        return "it speaks plain HTTP, not TLS", f"if that is intended, write `http://` instead of `https://` {where}"
    if url.startswith("http://") and _CUT.search(text):
        return "it does not answer plain HTTP", f"if it speaks TLS, write `https://` instead of `http://` {where}"
    return None
