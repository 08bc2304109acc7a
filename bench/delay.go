package main

import (
	"errors"
	"net"
	"sync"
	"time"
)

// delayed is a connection whose writes arrive later, each by the same time and in their order: a
// longer wire, of any width. Both ends of every connection of a system are given one (meter.go), so
// that each way takes that long; only connecting isn't delayed.
//
// It is used instead of netem, which isn't there on every machine and would need root.
type delayed struct {
	net.Conn
	delay time.Duration

	mu      sync.Mutex // guards what follows
	changed sync.Cond  // of mu: the queue, or closing
	queue   []parcel
	bytes   int // in queue
	closing bool
	err     error // of the wire: the next Write returns it

	closed chan struct{} // closed when the wire is
}

// A parcel is one write under way.
type parcel struct {
	due   time.Time
	bytes []byte
}

const (
	maxUnderWay = 64 << 20    // bytes: a Write beyond them waits, as for a peer that doesn't read
	flushGrace  = time.Second // after Close, for what is under way
)

// delay returns conn itself when d is 0.
func delay(conn net.Conn, d time.Duration) net.Conn {
	if d == 0 {
		return conn
	}
	c := &delayed{Conn: conn, delay: d, closed: make(chan struct{})}
	c.changed.L = &c.mu
	go c.deliver()
	return c
}

// Write returns at once; b may be used again.
func (c *delayed) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !c.closing && c.bytes > maxUnderWay {
		c.changed.Wait()
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case c.closing:
		return 0, net.ErrClosed
	}
	c.queue = append(c.queue, parcel{time.Now().Add(c.delay), append([]byte(nil), b...)})
	c.bytes += len(b)
	c.changed.Broadcast()
	return len(b), nil
}

// Close lets what is under way arrive before the end of the connection does. Reads end at once.
func (c *delayed) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	c.closing = true
	c.changed.Broadcast()
	now := time.Now()
	return errors.Join(c.Conn.SetReadDeadline(now), c.Conn.SetWriteDeadline(now.Add(c.delay+flushGrace)))
}

// Read is that of the wire, until Close.
func (c *delayed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closing {
			err = net.ErrClosed
		}
	}
	return n, err
}

// deliver writes to the wire what is due, until Close and nothing is under way, or the wire fails.
func (c *delayed) deliver() {
	defer close(c.closed)
	defer c.Conn.Close()
	timer := newTimer()
	defer timer.stop()
	for {
		p, ok := c.next()
		if !ok {
			return
		}
		timer.wait(time.Until(p.due))
		_, err := c.Conn.Write(p.bytes)
		c.mu.Lock()
		c.bytes -= len(p.bytes)
		if err != nil {
			c.err, c.queue = err, nil
		}
		c.changed.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// next waits for something to deliver.
func (c *delayed) next() (parcel, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.closing {
		c.changed.Wait()
	}
	if len(c.queue) == 0 {
		return parcel{}, false
	}
	p := c.queue[0]
	c.queue[0] = parcel{}
	c.queue = c.queue[1:]
	return p, true
}
