// Package simnet is a network in one process, for tests in fake time: between hosts that are names,
// with a latency of its own for each direction of each pair, and faults: a host that dies or stands
// still, a direction that is cut or slow, connections that are lost, and a trigger on the k-th
// write of a link.
//
// Everything it makes (goroutines, timers, channels) belongs to the goroutine's synctest bubble
// that made it, and is gone when both ends of a connection are closed.
package simnet

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Link is one direction between two hosts.
type Link struct{ From, To string }

// Network connects hosts.
type Network struct {
	mu        sync.Mutex // guards what follows
	listeners map[string]*listener
	dead      map[string]bool
	cut       map[Link]bool
	paused    map[string]bool
	slow      delays
	writes    map[Link]int
	dials     map[Link]int
	conns     map[*conn]struct{}
	onWrite   func(Link, int) bool
}

// New returns a network without faults.
func New() *Network {
	return &Network{
		listeners: map[string]*listener{}, dead: map[string]bool{}, cut: map[Link]bool{}, paused: map[string]bool{},
		slow:   delays{},
		writes: map[Link]int{}, dials: map[Link]int{}, conns: map[*conn]struct{}{},
	}
}

// OnWrite is called before each write on a link with the link's number of writes so far, this one
// counted, while no lock is held that faults need; it may kill hosts. What it calls lost never
// arrives, silently: the host died before it. nil takes it away.
func (n *Network) OnWrite(f func(l Link, writes int) (lost bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onWrite = f
}

// Writes returns how many writes each link has seen.
func (n *Network) Writes() map[Link]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := make(map[Link]int, len(n.writes))
	for l, k := range n.writes {
		c[l] = k
	}
	return c
}

// Kill makes a host die as a process does: what it wrote before is delivered, what it writes later
// isn't; its connections and listeners are closed at the others' ends after the latency.
func (n *Network) Kill(host string) {
	n.mu.Lock()
	n.dead[host] = true
	var dying []*conn
	for c := range n.conns {
		if c.local == host {
			dying = append(dying, c)
		}
	}
	for addr, l := range n.listeners {
		if l.host == host {
			delete(n.listeners, addr)
			l.shut()
		}
	}
	n.mu.Unlock()
	for _, c := range dying {
		_ = c.Close()
	}
}

// Revive lets a dead host's name be used again, by a new process.
func (n *Network) Revive(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.dead, host)
}

// Cut discards silently what one host sends to another from now on, and refuses new connections
// either way, until Mend.
func (n *Network) Cut(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[l] = true
}

// Mend ends a cut. What was discarded stays lost, so the connections of the pair are reset.
func (n *Network) Mend(l Link) {
	n.mu.Lock()
	delete(n.cut, l)
	var stale []*conn
	for c := range n.conns {
		if c.local == l.From && c.remote == l.To {
			stale = append(stale, c)
		}
	}
	n.mu.Unlock()
	for _, c := range stale {
		_ = c.Close()
	}
}

// Pause makes a host stand still, as others see it: what it writes, and what they write to it,
// arrives after Resume, and nothing is lost. Its goroutines and timers run on (they are the
// bubble's), so what it decides meanwhile is decided too early; what it had decided before, and
// sends too late, is as of a process that was stopped between the two.
func (n *Network) Pause(host string) { n.hold(host, true) }

// Resume ends a pause: what was held arrives after the latency.
func (n *Network) Resume(host string) { n.hold(host, false) }

func (n *Network) hold(host string, held bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused[host] = held
	for c := range n.conns {
		if c.local == host || c.remote == host {
			c.in.hold(n.paused[c.local] || n.paused[c.remote], n.slow.of(Link{c.remote, c.local}))
		}
	}
}

// Slow adds to a link's latency from now on; 0 is as before. Nothing overtakes what was written
// earlier on the same connection.
func (n *Network) Slow(l Link, extra time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[l] = extra
}

// Reset loses the connections between two hosts, and what is on its way on them.
func (n *Network) Reset(a, b string) {
	n.mu.Lock()
	var lost []*conn
	for c := range n.conns {
		if c.local == a && c.remote == b || c.local == b && c.remote == a {
			lost = append(lost, c)
		}
	}
	n.mu.Unlock()
	for _, c := range lost {
		_ = c.Close()
	}
}

// delays are what links take beyond their latency.
type delays map[Link]time.Duration

// of is how long what is written now on a link takes.
func (d delays) of(l Link) time.Duration { return latency(l) + d[l] }

// Listen listens on a host; the address is host:port for the next free port.
func (n *Network) Listen(host string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for port := 1; ; port++ {
		addr := fmt.Sprintf("%s:%d", host, port)
		if n.listeners[addr] == nil {
			l := &listener{n: n, host: host, addr: address(addr), backlog: make(chan *conn, 128),
				closed: make(chan struct{})}
			n.listeners[addr] = l
			return l, nil
		}
	}
}

// Dialer returns the dial function of a host.
func (n *Network) Dialer(host string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		to, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		n.mu.Lock()
		n.dials[Link{host, to}]++
		there, back := n.slow.of(Link{host, to}), n.slow.of(Link{to, host})
		n.mu.Unlock()
		if err := sleep(ctx, there); err != nil {
			return nil, err
		}
		n.mu.Lock()
		l := n.listeners[addr]
		unreachable := n.cut[Link{host, to}] || n.cut[Link{to, host}]
		dead := n.dead[host]
		n.mu.Unlock()
		switch {
		case dead:
			return nil, errors.New("simnet: this host is dead")
		case unreachable:
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if err := sleep(ctx, back); err != nil {
			return nil, err
		}
		if l == nil {
			return nil, &net.OpError{Op: "dial", Net: "sim", Addr: address(addr), Err: errors.New("connection refused")}
		}
		near, far := n.pair(host, to, address(addr))
		select {
		case l.backlog <- far:
			return near, nil
		case <-l.closed:
			_ = near.Close()
			return nil, &net.OpError{Op: "dial", Net: "sim", Addr: address(addr), Err: errors.New("connection refused")}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// latency is a link's: constant, 50 to 150 µs, different for nearly every link, so that seeds
// repeat.
func latency(l Link) time.Duration {
	h := fnv.New32a()
	_, _ = io.WriteString(h, l.From+">"+l.To)
	return 50*time.Microsecond + time.Duration(h.Sum32()%100_003)*time.Nanosecond
}

type address string

func (a address) Network() string { return "sim" }
func (a address) String() string  { return string(a) }

type listener struct {
	n       *Network
	host    string
	addr    address
	backlog chan *conn
	once    sync.Once
	closed  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) shut() { l.once.Do(func() { close(l.closed) }) }

func (l *listener) Close() error {
	l.n.mu.Lock()
	if l.n.listeners[string(l.addr)] == l {
		delete(l.n.listeners, string(l.addr))
	}
	l.n.mu.Unlock()
	l.shut()
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// pair makes the two ends of a connection.
func (n *Network) pair(from, to string, addr address) (near, far *conn) {
	there, back := newPipe(), newPipe()
	near = &conn{n: n, local: from, remote: to, laddr: address(from + ":0"), raddr: addr, in: back, out: there}
	far = &conn{n: n, local: to, remote: from, laddr: addr, raddr: address(from + ":0"), in: there, out: back}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	there.held = n.paused[from] || n.paused[to]
	back.held = there.held
	return near, far
}

// conn is one end of a connection.
type conn struct {
	n             *Network
	local, remote string
	laddr, raddr  address
	in, out       *pipe
	once          sync.Once
	stranded      bool // guarded by n.mu
}

func (c *conn) Write(b []byte) (int, error) {
	n := c.n
	l := Link{c.local, c.remote}
	n.mu.Lock()
	n.writes[l]++
	k, trigger := n.writes[l], n.onWrite
	n.mu.Unlock()
	lost := trigger != nil && trigger(l, k)
	n.mu.Lock()
	lost = lost || n.dead[c.local] || n.cut[l] || c.stranded
	delay := n.slow.of(l)
	n.mu.Unlock()
	return c.out.write(b, lost, delay)
}

func (c *conn) Read(b []byte) (int, error) { return c.in.read(b) }

// Close closes both directions: the other end reads what is on its way, then EOF; this end reads
// nothing more.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.n.mu.Lock()
		delete(c.n.conns, c)
		delay, stranded := c.n.slow.of(Link{c.local, c.remote}), c.stranded
		c.n.mu.Unlock()
		if !stranded {
			c.out.finish(delay)
		}
		c.in.abandon()
	})
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.laddr }
func (c *conn) RemoteAddr() net.Addr { return c.raddr }

func (c *conn) SetDeadline(t time.Time) error {
	c.in.setDeadline(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(t)
	return nil
}

func (c *conn) SetWriteDeadline(time.Time) error { return nil } // writes don't block

// pipe is one direction: bytes with the time at which they arrive.
type pipe struct {
	mu      sync.Mutex
	changed chan struct{}
	queue   []segment
	eof     time.Time // when the end arrives; zero while open
	arrives schedule
	gone    bool // the reader has left
	held    bool // one of the hosts is paused
	limit   time.Time
}

type segment struct {
	at time.Time
	b  []byte
}

func newPipe() *pipe { return &pipe{changed: make(chan struct{})} }

func (p *pipe) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) write(b []byte, lost bool, delay time.Duration) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.eof.IsZero():
		return 0, net.ErrClosed
	case lost, p.gone:
		// As TCP does: the writer learns of it by reading. (If the write failed before, gRPC would
		// try the same connection again and again, and in fake time no later moment would ever
		// come.)
		return len(b), nil
	}
	p.queue = append(p.queue, segment{p.arrives.after(delay), append([]byte(nil), b...)})
	p.signal()
	return len(b), nil
}

// schedule is when what was written last arrives.
type schedule struct{ last time.Time }

// after is when what is written now arrives: after what was written before.
func (s *schedule) after(delay time.Duration) time.Time {
	if at := time.Now().Add(delay); at.After(s.last) {
		s.last = at
	}
	return s.last
}

func (p *pipe) finish(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.eof.IsZero() {
		p.eof = p.arrives.after(delay)
		p.signal()
	}
}

// hold keeps everything from arriving, or lets it arrive.
func (p *pipe) hold(held bool, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held && !held {
		earliest := time.Now().Add(delay)
		for i := range p.queue {
			p.queue[i].at = later(p.queue[i].at, earliest)
		}
		if p.arrives.last = later(p.arrives.last, earliest); !p.eof.IsZero() {
			p.eof = later(p.eof, earliest)
		}
	}
	p.held = held
	p.signal()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (p *pipe) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.queue = nil
	p.signal()
}

func (p *pipe) setDeadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = t
	p.signal()
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		now := time.Now()
		var due time.Time
		switch {
		case p.gone:
			return 0, net.ErrClosed
		case p.held:
		case len(p.queue) > 0 && !p.queue[0].at.After(now):
			n := copy(b, p.queue[0].b)
			if p.queue[0].b = p.queue[0].b[n:]; len(p.queue[0].b) == 0 {
				p.queue = p.queue[1:]
			}
			return n, nil
		case len(p.queue) > 0:
			due = p.queue[0].at
		case !p.eof.IsZero() && !p.eof.After(now):
			return 0, io.EOF
		case !p.eof.IsZero():
			due = p.eof
		}
		if !p.limit.IsZero() {
			if !p.limit.After(now) {
				return 0, os.ErrDeadlineExceeded
			}
			if due.IsZero() || p.limit.Before(due) {
				due = p.limit
			}
		}
		var timer *time.Timer
		var fires <-chan time.Time
		if !due.IsZero() {
			timer = time.NewTimer(due.Sub(now))
			fires = timer.C
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-fires:
		}
		if timer != nil {
			timer.Stop()
		}
		p.mu.Lock()
	}
}
