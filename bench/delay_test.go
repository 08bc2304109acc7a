package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// pair is a connection of a server with a client: the server's end delayed, the client's end with
// delay d of its own.
func pair(t *testing.T, d time.Duration) (server, client net.Conn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	dialled, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server, client = delay(accepted, d), delay(dialled, d)
	t.Cleanup(func() {
		server.Close()
		client.Close()
		for _, c := range []net.Conn{server, client} {
			if c, ok := c.(*delayed); ok {
				<-c.closed
			}
		}
	})
	return server, client
}

// A round trip takes two delays, however much is sent at once, and the bytes keep their order.
func TestDelay(t *testing.T) {
	t.Parallel()
	const d = 20 * time.Millisecond
	server, client := pair(t, d)
	go func() {
		var b [1]byte
		for {
			if _, err := server.Read(b[:]); err != nil {
				return
			}
			_, _ = server.Write(b[:])
		}
	}()
	sent := []byte("0123456789")
	begun := time.Now()
	for i := range sent {
		if n, err := client.Write(sent[i : i+1]); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if took := time.Since(begun); took > d {
		t.Errorf("the writes took %v: they should return at once", took)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%q, %v", got, err)
	}
	if took := time.Since(begun); took < 2*d || took > 6*d { // ten in a row would take twenty delays
		t.Errorf("the round trips took %v, each delay is %v", took, d)
	}
}

// What was written before Close arrives; nothing can be written or read after it.
func TestDelayedClose(t *testing.T) {
	t.Parallel()
	server, client := pair(t, 5*time.Millisecond)
	reading := make(chan error, 1)
	go func() {
		_, err := client.Read(make([]byte, 1))
		reading <- err
	}()
	if _, err := client.Write([]byte("farewell")); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
	if got, err := io.ReadAll(server); string(got) != "farewell" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read during Close: %v", err)
	}
}

// A wire that broke is told to who writes.
func TestDelayedError(t *testing.T) {
	t.Parallel()
	server, client := pair(t, time.Millisecond)
	server.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if _, err := client.Write([]byte("x")); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("writes still succeed")
		}
	}
}

// Through a relay, each way is delayed once and counted once.
func TestRelay(t *testing.T) {
	t.Parallel()
	const d = 10 * time.Millisecond
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	go func() {
		conn, err := target.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(onlyWriter{conn}, conn)
	}()
	m := newMeter(d)
	r, err := startRelay(m, target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	conn, err := net.Dial("tcp", r.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begun := time.Now()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if took := time.Since(begun); took < 2*d || took > 10*d {
		t.Errorf("there and back took %v", took)
	}
	if f := m.flows().Peers; f.In != 5 || f.Out != 5 {
		t.Errorf("counted %+v", f)
	}
}
