"""Parses an HTTP/1.1 reply with llhttp, through geventhttpclient's binding.

llhttp refuses every ambiguous framing: both ``Content-Length`` and ``Transfer-Encoding``, duplicate
lengths, bare line feeds, folded headers.
"""

from __future__ import annotations

from geventhttpclient._parser import HTTPParseError, HTTPResponseParser


class ReplyParser(HTTPResponseParser):
    """Collects what llhttp finds of one reply.

    What follows the head and the body changes neither. Trailers are ignored; a second message that
    no request belongs to makes the connection ``dirty``, so that it is not used again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.status = 0
        self.header_list: list[list[str]] = []
        self.body: list[bytes] = []
        self.head_done = False
        self.done = False
        self.dirty = False
        self._in_value = True

    def _on_message_begin(self) -> None:
        if self.done:
            self.dirty = True

    def _on_status(self, message: str) -> None:
        """The reason phrase is not used."""

    def _on_header_field(self, text: str) -> None:
        if self.head_done:
            return
        if self._in_value:
            self.header_list.append([text, ""])
            self._in_value = False
        else:
            self.header_list[-1][0] += text

    def _on_header_value(self, text: str) -> None:
        if self.head_done:
            return
        self._in_value = True
        self.header_list[-1][1] += text

    def _on_headers_complete(self) -> bool:
        status = self.get_code()
        if status < 100:  # neither an interim reply nor a final one
            raise HTTPParseError("status below 100")
        if status >= 200 and not self.head_done:
            self.status = status
            self.head_done = True
        return False

    def _on_body(self, data: bytearray) -> None:
        if not self.done:
            self.body.append(bytes(data))

    def _on_message_complete(self) -> None:
        if self.head_done:
            self.done = True
        else:  # an interim 1xx reply: the real one follows
            self.header_list.clear()
            self._in_value = True

    def take_body(self) -> bytes:
        """The body bytes parsed since the last call."""
        data = b"".join(self.body)
        self.body.clear()
        return data
