package main

import (
	"errors"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
)

// profiles writes what this process does while a window lasts, for go tool pprof and the subcommand
// breakdown:
//
//	<path>.cpu.pprof
//	<path>.mutex.pprof    how long who held a lock held up others
//	<path>.allocs.pprof   since the process began; go tool pprof -base <path>.before.pprof takes away what was before
type profiles struct {
	mu   sync.Mutex // guards what follows
	path string
	cpu  *os.File
}

var errProfile = errors.New("profile: one is begun before the other has ended")

const mutexFraction = 10 // one contention in so many is recorded

func (p *profiles) begin(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cpu != nil {
		return errProfile
	}
	if err := writeProfile("allocs", path+".before.pprof"); err != nil {
		return err
	}
	f, err := os.Create(path + ".cpu.pprof")
	if err != nil {
		return err
	}
	p.path, p.cpu = path, f
	runtime.SetMutexProfileFraction(mutexFraction)
	return pprof.StartCPUProfile(f)
}

func (p *profiles) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cpu == nil {
		return errProfile
	}
	pprof.StopCPUProfile()
	runtime.SetMutexProfileFraction(0)
	err := p.cpu.Close()
	p.cpu = nil
	return errors.Join(err, writeProfile("allocs", p.path+".allocs.pprof"),
		writeProfile("mutex", p.path+".mutex.pprof"))
}

func writeProfile(name, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup(name).WriteTo(f, 0), f.Close())
}
