package transport

import (
	"io"

	"github.com/understudy-rpc/understudy/election"
)

// WithDialled replaces how the store that a target names is dialled.
func WithDialled(dial func(endpoints []string, group string) (election.Election, io.Closer, error)) Option {
	return func(c *config) {
		c.elect = func(t target) (election.Election, io.Closer, error) { return dial(t.endpoints, t.group) }
	}
}
