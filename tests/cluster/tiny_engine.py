"""An engine of a few lines for the cluster's tests: writes its port file, answers /health, ends on SIGTERM unless told not to.

python tiny_engine.py PORT_FILE [stubborn | broken | slow]
"""

import json
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

port_file, mood = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
if mood == "broken":
    sys.exit(3)
if mood == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
born = time.monotonic()


class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if mood == "slow" and time.monotonic() - born < 0.5 else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Health)
port_file.write_text(json.dumps({"port": server.server_port}))
server.serve_forever(poll_interval=60)
