package main

import (
	"time"

	"github.com/understudy-rpc/understudy/internal/process"
	"github.com/understudy-rpc/understudy/replica"
)

// child is this program with a subcommand, at the other end of pipes.
type child = process.Partner[command, event]

// A command asks a child for something. It is answered by one event.
type command struct {
	Do    string      `json:"do"`
	Marks []time.Time `json:"marks,omitempty"` // of doGaps
}

func (c command) String() string { return c.Do }

// What a command can ask for.
const (
	doStatus = "status" // a replica's status
	doDump   = "dump"   // a replica's state
	doStart  = "start"  // the client's callers begin
	doStats  = "stats"  // the client's calls so far
	doStop   = "stop"   // the client's callers end their last calls; answered with its tally
	doGaps   = "gaps"   // the longest call at each of Marks
)

// An event answers a command, or is what a child says unasked. One field at most is set.
type event struct {
	Status   *replicaStatus    `json:"status,omitempty"`
	Failover *failover         `json:"failover,omitempty"`
	Dump     map[string]uint64 `json:"dump,omitempty"`
	Stats    *stats            `json:"stats,omitempty"`
	Tally    *tally            `json:"tally,omitempty"`
	Gaps     []heldCall        `json:"gaps,omitempty"`
}

// replicaStatus is what a replica says of itself.
type replicaStatus struct {
	Role     replica.Role `json:"role"`
	Primary  string       `json:"primary"`
	Epoch    uint64       `json:"epoch"`
	InSync   []string     `json:"in_sync"`
	Executed uint64       `json:"executed"`
	Stable   uint64       `json:"stable"`
}

// failover is what a new primary says of the takeover, in wall-clock time.
type failover struct {
	From      string    `json:"from"`
	To        string    `json:"to"`
	Epoch     uint64    `json:"epoch"`
	Suspected time.Time `json:"suspected"` // the former primary was
	Elected   time.Time `json:"elected"`   // the election was won
	Opened    time.Time `json:"opened"`    // calls are served again
}

// stats are the client's calls up to At.
type stats struct {
	At     time.Time `json:"at"`
	Calls  int       `json:"calls"`
	Failed int       `json:"failed"`
}
