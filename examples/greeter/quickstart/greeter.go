package quickstart

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
)

// Greeter counts whom it has greeted.
type Greeter struct {
	helloworld.UnimplementedGreeterServer
	greeted map[string]int
}

// NewGreeter returns a greeter that has greeted nobody.
func NewGreeter() *Greeter { return &Greeter{greeted: map[string]int{}} }

// SayHello needs no mutex: one turn follows the other. It is deterministic: for the time it would
// use understudy.Now, and not time.Now.
func (g *Greeter) SayHello(_ context.Context, req *helloworld.HelloRequest) (*helloworld.HelloReply, error) {
	g.greeted[req.GetName()]++
	text := fmt.Sprintf("Hello %s, number %d", req.GetName(), g.greeted[req.GetName()])
	return &helloworld.HelloReply{Message: text}, nil
}

// Snapshot hands the state to a replica that joins. It is called between turns; what it returns may
// write while later turns run, so it writes a copy.
func (g *Greeter) Snapshot() (write func(io.Writer) error, err error) {
	greeted := maps.Clone(g.greeted)
	return func(w io.Writer) error { return json.NewEncoder(w).Encode(greeted) }, nil
}

// Restore replaces the state by what a Snapshot has written.
func (g *Greeter) Restore(r io.Reader) error {
	var greeted map[string]int
	if err := json.NewDecoder(r).Decode(&greeted); err != nil {
		return err
	}
	g.greeted = greeted
	return nil
}
