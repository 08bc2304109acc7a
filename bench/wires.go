package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// wires take raft's messages from node to node over TCP: a connection from each node to each other
// one, on which a message follows its length. What can't be sent is lost, as raft allows.
type wires struct {
	received chan *raftpb.Message
	queues   map[uint64]chan *raftpb.Message // by the ID of the node that they go to

	meter   *meter
	lis     net.Listener
	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	running sync.WaitGroup
}

const (
	maxWireMessage = 64 << 20
	redialAfter    = 20 * time.Millisecond
	wireBuffer     = 64 << 10
)

func openWires(m *meter, lis net.Listener, self peer, all []peer) *wires {
	w := &wires{received: make(chan *raftpb.Message, raftQueue), queues: map[uint64]chan *raftpb.Message{}, meter: m,
		lis: lis}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	for _, p := range all {
		if p.ID != self.ID {
			w.queues[p.ID] = make(chan *raftpb.Message, raftQueue)
			w.running.Go(func() { w.feed(p.Addr, w.queues[p.ID]) })
		}
	}
	w.running.Go(w.accept)
	return w
}

// send says whether the message is on its way.
func (w *wires) send(m *raftpb.Message) bool {
	select {
	case w.queues[m.GetTo()] <- m:
		return true
	default:
		return false
	}
}

// feed sends what is queued for one node, over one connection after the other.
func (w *wires) feed(addr string, queue <-chan *raftpb.Message) {
	for w.ctx.Err() == nil {
		conn, err := w.meter.dialPeer(w.ctx, addr)
		if err == nil {
			stop := context.AfterFunc(w.ctx, func() { conn.Close() })
			w.write(conn, queue)
			stop()
			conn.Close()
		}
		select {
		case <-w.ctx.Done():
		case <-time.After(redialAfter):
		}
	}
}

// write flushes when nothing more is queued, and returns when it can't write.
func (w *wires) write(conn net.Conn, queue <-chan *raftpb.Message) {
	out := bufio.NewWriterSize(conn, wireBuffer)
	var b []byte
	for {
		var m *raftpb.Message
		select {
		case m = <-queue:
		case <-w.ctx.Done():
			return
		}
		var err error
		if b, err = (proto.MarshalOptions{}).MarshalAppend(append(b[:0], 0, 0, 0, 0), m); err != nil {
			return
		}
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		if _, err = out.Write(b); err == nil && len(queue) == 0 {
			err = out.Flush()
		}
		if err != nil {
			return
		}
	}
}

func (w *wires) accept() {
	for {
		conn, err := w.lis.Accept()
		if err != nil {
			return
		}
		w.running.Go(func() {
			defer context.AfterFunc(w.ctx, func() { conn.Close() })()
			defer conn.Close()
			_ = w.read(conn)
		})
	}
}

// read returns when the connection ends.
func (w *wires) read(conn net.Conn) error {
	in := bufio.NewReaderSize(conn, wireBuffer)
	var length [4]byte
	for {
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(length[:])
		if n > maxWireMessage {
			return fmt.Errorf("a message of %d bytes", n)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		m := new(raftpb.Message)
		if err := proto.Unmarshal(b, m); err != nil {
			return err
		}
		select {
		case w.received <- m:
		case <-w.ctx.Done():
			return nil
		}
	}
}

func (w *wires) close() {
	w.cancel()
	w.lis.Close()
	w.running.Wait()
}
