"""Mutual TLS 1.3, without I/O: both sides show a certificate of the job's authority, or there is no connection.

A Channel turns bytes of the wire into bytes of the stream and back; whoever has a socket moves them.
The event loops' own TLS would not do: it tells nobody of a handshake that failed, has no half-close, by
which last words arrive, and hides how much it holds. Sessions are not resumed, so every connection
checks the certificates again.
"""

from __future__ import annotations

import ssl

from shoal.config import Tls
from shoal.errors import ConfigurationError


def accepting(tls: Tls) -> ssl.SSLContext:
    """For the side that is dialled. Raises ConfigurationError for files that cannot be used."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
    context.num_tickets = 0
    return context


def dialling(tls: Tls) -> ssl.SSLContext:
    """For the side that dials, and checks the name or number it dialled. Raises ConfigurationError likewise."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, tls)


# "A protocol that is not taken here", for those whom TLS leaves without an answer, since they speak no TLS at all.
ALERT = bytes((21, 3, 3, 0, 2, 2, 70))


class Channel:
    """One end of one TLS stream. Every method may raise ssl.SSLError; `reason` has the words for it."""

    def __init__(self, context: ssl.SSLContext, host: str | None = None) -> None:
        """host: whom the peer's certificate must be for, where this is the side that dialled it."""
        self.secured = False  # both certificates are good
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._stream = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)

    @property
    def outgoing_bytes(self) -> int:
        """What `outgoing` would return."""
        return self._outgoing.pending

    def incoming(self, data: memoryview) -> None:
        """These bytes came from the wire; they are copied."""
        self._incoming.write(data)

    def outgoing(self) -> bytes:
        """What is to go over the wire next: after every other call there may be something, after an error too."""
        return self._outgoing.read()

    def shake_hands(self) -> None:
        """Goes on with the handshake as far as the bytes that came allow; then perhaps it is `secured`."""
        try:
            self._stream.do_handshake()
            self.secured = True
        except ssl.SSLWantReadError:
            pass

    def read(self, place: memoryview) -> int | None:
        """Puts bytes of the stream at the start of `place`: how many; None where there are none yet; 0 at its end."""
        try:
            return self._stream.read(len(place), place)  # type: ignore[return-value]
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return 0

    def write(self, data: memoryview) -> int:
        """Takes bytes into the stream, all of them as things are; how many."""
        return self._stream.write(data)

    def finish(self) -> None:
        """The stream ends with what was written; the peer may go on with its own."""
        try:
            self._stream.unwrap()
        except ssl.SSLWantReadError:
            pass  # the peer's own end may come later, or never


def reason(error: ssl.SSLError) -> str:
    """What went wrong between the two sides, in words that name who must change what."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not good ({error.verify_message.rstrip('.')}): {_remedy(error)}"
    return _REASONS.get(error.reason or "") or f"TLS failed ({error.reason or error})"


def verified(tls: Tls) -> Tls:
    """The settings, once their files have been read.

    Raises ConfigurationError for files that cannot be used, a certificate that nobody takes today among them.
    """
    error = _own_error(tls)
    if error is not None and error.verify_code in _OUT_OF_TIME:
        raise ConfigurationError(
            f"--tls-cert {tls.certificate} is not good today ({error.verify_message.rstrip('.')}), and no other "
            f"machine would take it: have the authority sign a new one, or set this machine's clock"
        )
    return tls


# --- helpers ----------------------------------------------------------------------------------

_HOSTNAME_MISMATCH, _IP_MISMATCH, _EXPIRED, _NOT_YET = 62, 64, 10, 9  # X509_V_ERR_*, which Python does not name
_OUT_OF_TIME = (_EXPIRED, _NOT_YET)

_SIGNED = "the authority in --tls-ca must have signed it, and both sides must have the same --tls-ca"
_REMEDIES = {
    **dict.fromkeys(
        (_HOSTNAME_MISMATCH, _IP_MISMATCH), "make it for every name and number it is dialled by (subjectAltName)"
    ),
    **dict.fromkeys(_OUT_OF_TIME, "give it a new one, or set the clock of either machine"),
}

_NO_TLS = "it does not speak TLS, and this side takes nothing else; give both --tls-cert, --tls-key and --tls-ca"
_OLD_TLS = "it does not speak TLS 1.3, and this side takes nothing older"
_ITS_WORD = "it does not take the certificate of this side"
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate; give it --tls-cert, --tls-key and --tls-ca",
    **dict.fromkeys(
        ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "WRONG_SSL_VERSION", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST",
         "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE", "BAD_RECORD_TYPE", "UNEXPECTED_MESSAGE"),
        _NO_TLS,
    ),
    **dict.fromkeys(("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW"), _OLD_TLS),
    "TLSV1_ALERT_UNKNOWN_CA": f"{_ITS_WORD} (another authority signed it): both must have one --tls-ca",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"{_ITS_WORD} (it has expired, or a clock is wrong): give this side a new one",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"{_ITS_WORD} (not for the name or number it dialled, or not as it should be)",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": f"{_ITS_WORD}, for a reason it does not say",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": f"{_ITS_WORD} (its extendedKeyUsage must have clientAuth and serverAuth)",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate, and this side showed none",
}  # fmt: skip


def _own_error(tls: Tls) -> ssl.SSLCertVerificationError | None:
    """What one who knows this very certificate would say against it: it is shown to ourselves."""
    reader = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    reader.check_hostname = False
    far = Channel(accepting(tls))
    reader.load_verify_locations(tls.certificate)
    reader.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    near = Channel(reader, "this side")
    try:
        near.shake_hands()
        far.incoming(memoryview(near.outgoing()))
        far.shake_hands()
        near.incoming(memoryview(far.outgoing()))
        near.shake_hands()
    except ssl.SSLError as error:
        return error if isinstance(error, ssl.SSLCertVerificationError) else None
    return None


def _remedy(error: ssl.SSLCertVerificationError) -> str:
    return _REMEDIES.get(error.verify_code, _SIGNED)


def _context(protocol: int, tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    for flag, path in (("--tls-cert", tls.certificate), ("--tls-key", tls.key), ("--tls-ca", tls.authority)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigurationError(f"{flag} {path} cannot be read: {error.strerror or error}") from None
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_passphrase)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"--tls-cert {tls.certificate} and --tls-key {tls.key} are no certificate and its key in PEM ({error})"
        ) from None
    try:
        context.load_verify_locations(tls.authority)
    except ssl.SSLError as error:
        raise ConfigurationError(f"--tls-ca {tls.authority} holds no certificate in PEM ({error})") from None
    return context


def _no_passphrase() -> str:
    """OpenSSL would ask the terminal, where a node has nobody to answer."""
    raise ValueError("the key has a passphrase; give one without, readable by its owner only")
