"""A checked blob as an answer: whole or in part, by sendfile(2) where the server offers that, in bounded memory.

The file that is sent is the one that was checked, and the transfer breaks off if it is written to meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import anyio.to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from airferry.bundle.artifacts import COPY_AGAIN
from airferry.errors import IntegrityError
from airferry.events import Emit, Warned
from airferry.far.serve.offer import CheckedBlob
from airferry.far.serve.protocol import SENDFILE, BrokenOff

# read into memory for each connection where the kernel cannot send the file itself, as with TLS
READ_CHUNK_BYTES = 64 * 1024
# how much the kernel sends before the file is looked at again
SLICE_BYTES = 4 * 1024 * 1024


class BlobAnswer(Response):
    """Sends a part of a checked blob, and closes its file in the end.

    The last chunk is always read, and sent only if the file is then still the one that was checked: a client never
    gets all of a blob that was changed on its way.
    """

    def __init__(self, blob: CheckedBlob, part: range, *, status: int, headers: Mapping[str, str], emit: Emit) -> None:
        """Take over an open blob; `part` are the offsets of its bytes that are sent."""
        super().__init__(
            status_code=status,
            headers={**headers, "Content-Length": str(len(part))},
            media_type="application/octet-stream",
        )
        self._blob = blob
        self._part = part
        self._emit = emit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send headers and bytes.

        Raises:
            BrokenOff: the file changed or ended; the connection cannot be used any more.
        """
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_bytes(send, by_kernel=SENDFILE in scope.get("extensions", {}))
        except IntegrityError as error:
            self._emit(Warned(f"broken off: {error.message}", hint="copy the bundle again from the source"))
            raise BrokenOff(error.message) from error
        finally:
            self._blob.close()

    async def _send_bytes(self, send: Send, *, by_kernel: bool) -> None:
        position, end = self._part.start, self._part.stop
        while end - position > READ_CHUNK_BYTES:
            self._blob.ensure_unchanged()
            count = min(SLICE_BYTES if by_kernel else READ_CHUNK_BYTES, end - position - READ_CHUNK_BYTES)
            if by_kernel:
                await send({"type": SENDFILE, "stream": self._blob.stream, "offset": position, "count": count})
            else:
                await send({"type": "http.response.body", "body": await self._read(position, count), "more_body": True})
            position += count
        body = await self._read(position, end - position)
        self._blob.ensure_unchanged()
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _read(self, position: int, count: int) -> bytes:
        data = await anyio.to_thread.run_sync(os.pread, self._blob.stream.fileno(), count, position)
        if len(data) != count:
            self._blob.ensure_unchanged()
            raise IntegrityError(
                f"blob `{self._blob.descriptor.digest}` ended at {position + len(data)} bytes", hint=COPY_AGAIN
            )
        return data
