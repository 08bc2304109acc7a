package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"sync"

	"github.com/understudy-rpc/understudy/bench/counter"
)

// adder is the service: values by key. It is what a replica replicates.
type adder struct {
	counter.UnimplementedCounterServer

	mu     sync.Mutex // guards what follows
	now    state
	values map[string]int64
}

// state is what servers that have executed the same calls have alike.
type state struct {
	Adds uint64 `json:"adds"` // calls that were executed
	Sum  int64  `json:"sum"`  // of their deltas
	// History has every call folded in, one after the other: servers that executed the same calls
	// in another order differ in it.
	History uint64 `json:"history"`
}

func newAdder() *adder { return &adder{now: state{History: fnvOffset}, values: map[string]int64{}} }

// fill gives the adder that many keys, none of which the callers use. Nothing is executed by it.
func (a *adder) fill(keys int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range keys {
		a.values[fmt.Sprintf("filled-%08d", i)] = int64(i)
	}
}

// Add implements counter.CounterServer.
func (a *adder) Add(_ context.Context, r *counter.AddRequest) (*counter.AddReply, error) {
	return &counter.AddReply{Value: a.add(r)}, nil
}

// add executes one request, and returns the key's value.
func (a *adder) add(r *counter.AddRequest) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	value := a.values[r.GetKey()] + r.GetDelta()
	a.values[r.GetKey()] = value
	a.now.Adds++
	a.now.Sum += r.GetDelta()
	for i := range len(r.GetKey()) {
		a.now.History = fold(a.now.History, uint64(r.GetKey()[i]))
	}
	a.now.History = fold(a.now.History, uint64(value))
	return value
}

// FNV-1a, over words.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func fold(h, v uint64) uint64 { return (h ^ v) * fnvPrime }

func (a *adder) state() state {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

// written is the adder in a snapshot.
type written struct {
	Now    state            `json:"now"`
	Values map[string]int64 `json:"values"`
}

// Snapshot implements replica.Snapshotter.
func (a *adder) Snapshot() (func(io.Writer) error, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := written{a.now, maps.Clone(a.values)}
	return func(out io.Writer) error { return json.NewEncoder(out).Encode(w) }, nil
}

// Restore implements replica.Snapshotter.
func (a *adder) Restore(in io.Reader) error {
	w := written{Values: map[string]int64{}}
	if err := json.NewDecoder(in).Decode(&w); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now, a.values = w.Now, w.Values
	return nil
}
