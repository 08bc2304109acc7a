package main

import (
	"runtime"
	"syscall"
	"time"
)

// usage is what a process has used since it began, or between two readings.
type usage struct {
	User       time.Duration `json:"user"`   // CPU
	System     time.Duration `json:"system"` // CPU, in the kernel
	Switches   uint64        `json:"switches"`
	Allocs     uint64        `json:"allocs"`
	AllocBytes uint64        `json:"alloc_bytes"`
	GCs        uint64        `json:"gcs"`
	Flows      flows         `json:"flows"`
}

// readUsage reads this process's. It stops the world, so it isn't for the middle of a window.
func readUsage(m *meter) (usage, error) {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return usage{}, err
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	u := usage{
		User: time.Duration(ru.Utime.Nano()), System: time.Duration(ru.Stime.Nano()),
		Switches: uint64(ru.Nvcsw) + uint64(ru.Nivcsw),
		Allocs:   mem.Mallocs, AllocBytes: mem.TotalAlloc, GCs: uint64(mem.NumGC),
	}
	if m != nil {
		u.Flows = m.flows()
	}
	return u, nil
}

func (u usage) since(before usage) usage {
	return usage{
		User: u.User - before.User, System: u.System - before.System, Switches: u.Switches - before.Switches,
		Allocs: u.Allocs - before.Allocs, AllocBytes: u.AllocBytes - before.AllocBytes, GCs: u.GCs - before.GCs,
		Flows: u.Flows.since(before.Flows),
	}
}

// plus adds what another process has used; who dialled whom isn't kept.
func (u usage) plus(v usage) usage {
	return usage{
		User: u.User + v.User, System: u.System + v.System, Switches: u.Switches + v.Switches,
		Allocs: u.Allocs + v.Allocs, AllocBytes: u.AllocBytes + v.AllocBytes, GCs: u.GCs + v.GCs,
		Flows: flows{Accepted: u.Flows.Accepted.plus(v.Flows.Accepted), Peers: u.Flows.Peers.plus(v.Flows.Peers)},
	}
}

func (u usage) cpu() time.Duration { return u.User + u.System }
