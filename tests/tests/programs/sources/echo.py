"""Python's http.server and asyncio, and their clients."""
import asyncio
import http.client
import http.server
import sys

MUCH = b"m" * (1 << 20)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = f"{self.client_address[0]} sent {len(body)}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


async def handle(reader, writer):
    writer.write(b"hello " + writer.get_extra_info("peername")[0].encode() + b"\n")
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def stream(host, port):
    reader, writer = await asyncio.open_connection(host, port)
    print((await reader.readline()).decode().strip(), writer.get_extra_info("peername")[0])

    async def send():
        writer.write(MUCH)
        await writer.drain()
        writer.write_eof()

    sender = asyncio.create_task(send())
    print("echoed", await reader.read(-1) == MUCH)
    await sender
    writer.close()
    await writer.wait_closed()


async def serve_stream(port):
    async with await asyncio.start_server(handle, "0.0.0.0", port) as server:
        await server.serve_forever()


mode, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if mode == "serve-http":
    http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
elif mode == "serve-stream":
    asyncio.run(serve_stream(port))
elif mode == "http":
    connection = http.client.HTTPConnection(host, port, timeout=30)
    for length in (0, 1, 1 << 20):
        connection.request("POST", "/", body=b"x" * length, headers={"Content-Length": str(length)})
        response = connection.getresponse()
        print(response.status, response.read().decode())
elif mode == "stream":
    asyncio.run(stream(host, port))
elif mode == "refused":
    try:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("GET", "/")
        print(connection.getresponse().status)
    except ConnectionError:
        print("a connection error")
