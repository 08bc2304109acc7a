package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
)

// greeter is the replicated service: it counts how often it greeted each name, and the reply says
// the number. It is all that a service's author writes: a handler, and two methods that hand over
// its state.
type greeter struct {
	helloworld.UnimplementedGreeterServer

	mu        sync.Mutex // guards greetings: turns are serial, but a dump is asked for between and during turns
	greetings map[string]uint64
}

func newGreeter() *greeter { return &greeter{greetings: map[string]uint64{}} }

// SayHello is deterministic: what it does depends on the state and the request only.
func (g *greeter) SayHello(_ context.Context, req *helloworld.HelloRequest) (*helloworld.HelloReply, error) {
	name := req.GetName()
	if name == "" {
		return nil, status.Error(codes.InvalidArgument, "nobody to greet: the name is empty")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.greetings[name]++
	return &helloworld.HelloReply{Message: greeting(name, g.greetings[name])}, nil
}

// Snapshot is called between turns. What it returns may write while later turns go on, so it writes
// from a copy.
func (g *greeter) Snapshot() (write func(io.Writer) error, err error) {
	copied := g.dump()
	return func(w io.Writer) error { return json.NewEncoder(w).Encode(copied) }, nil
}

// Restore replaces the state by what a Snapshot wrote. If it can't, the state is as before.
func (g *greeter) Restore(r io.Reader) error {
	var greetings map[string]uint64
	if err := json.NewDecoder(r).Decode(&greetings); err != nil {
		return fmt.Errorf("greeter: restore: %w", err)
	}
	if greetings == nil { // JSON's null
		return errors.New("greeter: restore: no state")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.greetings = greetings
	return nil
}

// dump returns a copy of the state.
func (g *greeter) dump() map[string]uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.greetings)
}

// greeting is the reply's text.
func greeting(name string, n uint64) string {
	return "Hello " + name + ", greeting " + strconv.FormatUint(n, 10)
}

// parseGreeting is the inverse of greeting for the name that was asked for, whatever that name
// contains.
func parseGreeting(name, message string) (uint64, error) {
	digits, ok := strings.CutPrefix(message, "Hello "+name+", greeting ")
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || n == 0 || greeting(name, n) != message {
		return 0, fmt.Errorf("%.100q is no greeting of %.100q", message, name)
	}
	return n, nil
}
