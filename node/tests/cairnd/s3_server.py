# An S3 server with the bucket `history`, for story 16. Prints its port. `stop` on standard input closes the port and
# every connection to come, `start` opens it again with all that it held; each is answered with the same word. It ends with
# its input.
import sys
import threading
import urllib.request

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


application = DomainDispatcherApplication(create_backend_app)


def listen(port):
    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


server = listen(0)
port = server.server_port
make_bucket = urllib.request.Request(f"http://127.0.0.1:{port}/history", method="PUT")
urllib.request.urlopen(make_bucket).close()
print(port, flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "stop":
        server.shutdown()
        server.server_close()
    elif word == "start":
        server = listen(port)
    print(word, flush=True)
