"""A real SMTP server for the tests: prints the address it got, then every message as one line of JSON."""

import json
import signal
from email import message_from_bytes
from email.header import decode_header, make_header

from aiosmtpd.controller import Controller


class Sink:
    async def handle_DATA(self, server, session, envelope):
        message = message_from_bytes(envelope.content)
        print(json.dumps({
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "subject": str(make_header(decode_header(message["Subject"] or ""))),
            "body": envelope.content.decode("utf-8", "replace"),
        }), flush=True)
        return "250 OK"


class AnyPort(Controller):
    """The upstream controller connects to the port it was told; here the kernel picks it."""

    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


sink = AnyPort(Sink(), hostname="127.0.0.1", port=0)
sink.start()
print("listening on 127.0.0.1:%d" % sink.port, flush=True)
signal.pause()  # Until the test ends this process.
