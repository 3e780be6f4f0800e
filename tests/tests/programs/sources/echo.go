// Go's net/http and net, and their clients.
package main

import (
	"bytes"
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

var much = bytes.Repeat([]byte("m"), 1<<20)

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func serveHTTP(port string) {
	must(http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		must(err)
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		must(err)
		fmt.Fprintf(w, "%s sent %d", host, len(body))
	})))
}

func serveStream(port string) {
	listener, err := net.Listen("tcp", ":"+port)
	must(err)
	for {
		connection, err := listener.Accept()
		must(err)
		go func() {
			defer connection.Close()
			fmt.Fprintf(connection, "hello %s\n", connection.RemoteAddr().(*net.TCPAddr).IP)
			io.Copy(connection, connection)
		}()
	}
}

func ask(address string) {
	for _, length := range []int{0, 1, 1 << 20} {
		response, err := http.Post("http://"+address+"/", "text/plain", bytes.NewReader(much[:length]))
		must(err)
		body, err := io.ReadAll(response.Body)
		must(err)
		response.Body.Close()
		fmt.Println(response.StatusCode, string(body))
	}
}

func stream(address string) {
	connection, err := net.Dial("tcp", address)
	must(err)
	reader := bufio.NewReader(connection)
	line, err := reader.ReadString('\n')
	must(err)
	fmt.Println(line, connection.RemoteAddr().(*net.TCPAddr).IP, connection.LocalAddr().(*net.TCPAddr).IP)
	go func() {
		_, err := connection.Write(much)
		must(err)
		must(connection.(*net.TCPConn).CloseWrite())
	}()
	all, err := io.ReadAll(reader)
	must(err)
	fmt.Println("echoed", bytes.Equal(all, much))
}

func refused(address string) {
	connection, err := net.Dial("tcp", address)
	if err == nil {
		_, err = connection.Read(make([]byte, 1))
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("a connection error")
	}
	fmt.Println(err)
}

func main() {
	mode, host, port := os.Args[1], os.Args[2], os.Args[3]
	address := net.JoinHostPort(host, port)
	switch mode {
	case "serve-http":
		serveHTTP(port)
	case "serve-stream":
		serveStream(port)
	case "http":
		ask(address)
	case "stream":
		stream(address)
	case "refused":
		refused(address)
	}
}
