// Node's http and net, and their clients: a name with addresses of both families, happy eyeballs.
const http = require("http");
const net = require("net");

const [mode, host, port] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const much = Buffer.alloc(1 << 20, "m");
const plain = (address) => address.replace("::ffff:", "");
// As a resolver that knows an IPv6 address where nobody is, and the real one.
const lookup = (name, options, done) =>
  done(null, [
    { address: "fd78::9:9", family: 6 },
    { address: host, family: 4 },
  ]);

const modes = {
  "serve-http": () =>
    http
      .createServer((request, response) => {
        let length = 0;
        request.on("data", (data) => (length += data.length));
        request.on("end", () => response.end(`${plain(request.socket.remoteAddress)} sent ${length}`));
      })
      .listen(port),
  "serve-stream": () =>
    net
      .createServer({ allowHalfOpen: true }, (socket) => {
        socket.write(`hello ${plain(socket.remoteAddress)}\n`);
        socket.pipe(socket);
        socket.on("error", () => {});
      })
      .listen(port),
  http: () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const post = (length, then) => {
      const request = http.request({ host, port, agent, method: "POST" }, (response) => {
        let text = "";
        response.on("data", (data) => (text += data));
        response.on("end", () => {
          console.log(response.statusCode, text, request.reusedSocket);
          // Once the connection is free again.
          setImmediate(then);
        });
      });
      request.end(much.subarray(0, length));
    };
    post(0, () => post(1, () => post(1 << 20, () => agent.destroy())));
  },
  stream: () => {
    const socket = net.connect({ host: "web", port, family: 0, autoSelectFamily: true, lookup, allowHalfOpen: true });
    const parts = [];
    socket.on("connect", () => {
      console.log("to", socket.remoteAddress);
      socket.end(much);
    });
    socket.on("data", (data) => parts.push(data));
    socket.on("end", () => {
      const all = Buffer.concat(parts);
      const line = all.indexOf("\n");
      console.log(all.subarray(0, line).toString(), "echoed", all.subarray(line + 1).equals(much));
    });
    socket.on("error", (error) => console.log(error.code));
  },
  refused: () => {
    const socket = net.connect({ host, port });
    socket.on("error", () => console.log("a connection error"));
    socket.on("end", () => console.log("an end"));
  },
};
modes[mode]();
