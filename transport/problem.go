package transport

import (
	"cmp"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// This file says why calls wait.

// problem says what a call waits for, for its error: which replicas aren't reached, and why.
func (c *Client) problem() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	if c.view.suspect != nil {
		fmt.Fprintf(&b, "%v; ", c.view.suspect)
	}
	if down := c.unavailable(); down != nil {
		b.WriteString(strings.TrimPrefix(status.Convert(down).Message(), "understudy: ") + "; ")
	}
	switch {
	case len(c.links) == 0:
		b.WriteString("no replica is known")
	case c.session.number == 0:
		b.WriteString("no session is open")
	default:
		fmt.Fprintf(&b, "the primary is %v, in epoch %d", c.primary, c.session.source.Epoch())
	}
	for _, l := range c.links {
		if !l.up {
			fmt.Fprintf(&b, "; no stream to %s at %s", l.name, l.addr)
			if why := cmp.Or(l.dialled, l.problem); why != nil {
				fmt.Fprintf(&b, ": %v", why)
			}
		}
	}
	return b.String()
}

// reached notes what became of connecting to a replica; the balancer says it.
func (c *Client) reached(name, addr string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		if l.name == name && l.addr == addr {
			l.dialled = err
		}
	}
}

// refused is what a call is told that waits for a session while every replica refuses this client:
// nil while there is one that doesn't. mu is held.
func (c *Client) refused() error {
	var why error
	for _, l := range c.links {
		switch status.Code(l.problem) {
		case codes.Unauthenticated, codes.PermissionDenied:
			why = l.problem
		default:
			return nil
		}
	}
	if why == nil {
		return nil
	}
	return statusRefused(why)
}
