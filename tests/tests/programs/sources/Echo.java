// Java's HttpServer, HttpClient, plain sockets and NIO: they use IPv6 sockets for IPv4 addresses.
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.util.Arrays;
import java.util.concurrent.Executors;

public class Echo {
    static final byte[] MUCH = new byte[1 << 20];

    public static void main(String[] words) throws Exception {
        Arrays.fill(MUCH, (byte) 'm');
        String host = words[1];
        int port = Integer.parseInt(words[2]);
        switch (words[0]) {
            case "serve-http" -> serveHttp(port);
            case "serve-stream" -> serveStream(port);
            case "http" -> http(host, port);
            case "stream" -> { stream(host, port); channel(host, port); }
            case "refused" -> refused(host, port);
        }
    }

    static void serveHttp(int port) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress(port), 50);
        server.createContext("/", exchange -> {
            int length = exchange.getRequestBody().readAllBytes().length;
            byte[] answer = (exchange.getRemoteAddress().getAddress().getHostAddress() + " sent " + length).getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
    }

    static void serveStream(int port) throws IOException {
        ServerSocket server = new ServerSocket(port);
        while (true) {
            Socket socket = server.accept();
            new Thread(() -> {
                try (socket) {
                    socket.getOutputStream().write(("hello " + socket.getInetAddress().getHostAddress() + "\n").getBytes());
                    socket.getInputStream().transferTo(socket.getOutputStream());
                } catch (IOException gone) {
                    // The client went away.
                }
            }).start();
        }
    }

    static void http(String host, int port) throws Exception {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        for (int length : new int[] {0, 1, 1 << 20}) {
            HttpRequest request = HttpRequest.newBuilder(URI.create("http://" + host + ":" + port + "/"))
                .POST(HttpRequest.BodyPublishers.ofByteArray(Arrays.copyOf(MUCH, length))).build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }

    static String line(java.io.InputStream in) throws IOException {
        StringBuilder text = new StringBuilder();
        for (int next = in.read(); next != '\n' && next >= 0; next = in.read()) text.append((char) next);
        return text.toString();
    }

    static void stream(String host, int port) throws Exception {
        try (Socket socket = new Socket(host, port)) {
            System.out.println(line(socket.getInputStream()) + " " + socket.getInetAddress().getHostAddress()
                + " " + socket.getLocalAddress().getHostAddress());
            Thread sender = new Thread(() -> {
                try {
                    socket.getOutputStream().write(MUCH);
                    socket.shutdownOutput();
                } catch (IOException failed) {
                    System.out.println(failed.getMessage());
                }
            });
            sender.start();
            System.out.println("echoed " + Arrays.equals(socket.getInputStream().readAllBytes(), MUCH));
            sender.join();
        }
    }

    static void channel(String host, int port) throws Exception {
        try (SocketChannel channel = SocketChannel.open()) {
            channel.configureBlocking(false);
            channel.connect(new InetSocketAddress(host, port));
            while (!channel.finishConnect()) Thread.onSpinWait();
            channel.configureBlocking(true);
            channel.write(ByteBuffer.wrap("x".getBytes()));
            channel.shutdownOutput();
            ByteBuffer all = ByteBuffer.allocate(100);
            while (channel.read(all) >= 0) { }
            System.out.println(new String(all.array(), 0, all.position()).replace('\n', ' ')
                + " " + ((InetSocketAddress) channel.getRemoteAddress()).getAddress().getHostAddress());
        }
    }

    static void refused(String host, int port) {
        try (Socket socket = new Socket(host, port)) {
            System.out.println(socket.getInputStream().read());
        } catch (IOException failed) {
            System.out.println("a connection error");
        }
    }
}
