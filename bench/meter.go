package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A meter counts what goes over a process's connections, each of which it hands out itself, and
// delays what they send. Its methods may run concurrently.
type meter struct {
	delay     time.Duration
	accepted  flow // from clients, and sources
	peers     flow // dialled to other servers: so that each byte between servers is counted once
	fromPeers flow // accepted from other servers

	mu     sync.Mutex // guards dialled
	byAddr map[string]*flow
}

// flow counts one kind of connections.
type flow struct{ in, out, reads, writes atomic.Uint64 }

// traffic is what a flow has counted: bytes, and the calls of the kernel that moved them.
type traffic struct {
	In     uint64 `json:"in"`
	Out    uint64 `json:"out"`
	Reads  uint64 `json:"reads"`
	Writes uint64 `json:"writes"`
}

func newMeter(delay time.Duration) *meter { return &meter{delay: delay, byAddr: map[string]*flow{}} }

// dial is for a client: it counts by address.
func (m *meter) dial(ctx context.Context, addr string) (net.Conn, error) {
	m.mu.Lock()
	f := m.byAddr[addr]
	if f == nil {
		f = new(flow)
		m.byAddr[addr] = f
	}
	m.mu.Unlock()
	return m.dialInto(ctx, addr, f)
}

// dialPeer is for a server that dials another one.
func (m *meter) dialPeer(ctx context.Context, addr string) (net.Conn, error) {
	return m.dialInto(ctx, addr, &m.peers)
}

func (m *meter) dialInto(ctx context.Context, addr string, f *flow) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return m.conn(conn, f), nil
}

func (m *meter) conn(conn net.Conn, f *flow) net.Conn { return &meteredConn{delay(conn, m.delay), f} }

// listen counts what is accepted.
func (m *meter) listen(lis net.Listener) net.Listener { return &meteredListener{lis, m, &m.accepted} }

// listenPeers is for a server that other ones dial.
func (m *meter) listenPeers(lis net.Listener) net.Listener {
	return &meteredListener{lis, m, &m.fromPeers}
}

type meteredListener struct {
	net.Listener
	meter *meter
	flow  *flow
}

func (l *meteredListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.meter.conn(conn, l.flow), nil
}

type meteredConn struct {
	net.Conn
	flow *flow
}

func (c *meteredConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.flow.in.Add(uint64(n))
	c.flow.reads.Add(1)
	return n, err
}

func (c *meteredConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.flow.out.Add(uint64(n))
	c.flow.writes.Add(1)
	return n, err
}

// flows is what a meter has counted.
type flows struct {
	Accepted traffic            `json:"accepted"`
	Peers    traffic            `json:"peers"`
	Dialled  map[string]traffic `json:"dialled,omitempty"` // by address
}

func (m *meter) flows() flows {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := flows{Accepted: m.accepted.traffic(), Peers: m.peers.traffic(), Dialled: map[string]traffic{}}
	for addr, d := range m.byAddr {
		f.Dialled[addr] = d.traffic()
	}
	return f
}

func (f *flow) traffic() traffic {
	return traffic{f.in.Load(), f.out.Load(), f.reads.Load(), f.writes.Load()}
}

func (f flows) since(before flows) flows {
	diff := flows{Accepted: f.Accepted.since(before.Accepted), Peers: f.Peers.since(before.Peers),
		Dialled: map[string]traffic{}}
	for addr, t := range f.Dialled {
		diff.Dialled[addr] = t.since(before.Dialled[addr])
	}
	return diff
}

func (t traffic) since(before traffic) traffic {
	return traffic{t.In - before.In, t.Out - before.Out, t.Reads - before.Reads, t.Writes - before.Writes}
}

func (t traffic) plus(u traffic) traffic {
	return traffic{t.In + u.In, t.Out + u.Out, t.Reads + u.Reads, t.Writes + u.Writes}
}

func (t traffic) bytes() uint64 { return t.In + t.Out }
