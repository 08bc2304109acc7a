package main

import (
	"context"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// script is where a play writes; each line goes to its watcher first.
type script struct {
	mu   sync.Mutex // guards text
	text strings.Builder
	line func(string)
}

func (s *script) Write(b []byte) (int, error) {
	s.line(string(b))
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *script) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

var lastLine = regexp.MustCompile(
	`\ncalls=([0-9]+) failed=([0-9]+) lost=([0-9]+) duplicated=([0-9]+) ` +
		`failovers=([0-9]+) gap_p50_ms=[0-9]+ gap_max_ms=[0-9]+\n$`,
)

// The whole, with real processes: the primary is killed and comes back, and nothing is amiss.
func TestPlay(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an etcd and four processes")
	}
	early, end := context.WithCancel(t.Context())
	defer end()
	// Ends when the first victim is in-sync again after its failover, if that is so when a line is
	// printed, each second: so a kill doesn't come with one.
	failedOver, restarted := false, false
	out := &script{line: func(line string) {
		failedOver = failedOver || strings.Contains(line, " took over from ")
		restarted = restarted || strings.Contains(line, " is started again")
		if failedOver && restarted && strings.HasSuffix(line, "in-sync a b c\n") {
			end()
		}
	}}
	p := &play{cfg: runConfig{duration: time.Minute, killEvery: 2700 * time.Millisecond, callers: 4, replicas: 3},
		early: early, out: out}
	ok, err := p.run(t.Context())
	if err != nil || !ok {
		t.Errorf("ok %v, %v", ok, err)
	}
	m := lastLine.FindStringSubmatch(out.String())
	if m == nil || m[1] == "0" || m[2] != "0" || m[3] != "0" || m[4] != "0" || m[5] == "0" {
		t.Errorf("the last line is %q", m)
	}
	t.Log(out.String())
}

// A client that dies takes along what its callers know: that isn't ok, and isn't taken for
// greetings lost.
func TestPlayWithoutItsClient(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an etcd and two processes")
	}
	var p *play
	out := &script{line: func(line string) {
		if strings.Contains(line, "calls/s") {
			p.client.Kill()
		}
	}}
	p = &play{cfg: runConfig{duration: time.Minute, noKill: true, callers: 4, replicas: 1}, early: t.Context(),
		out: out}
	ok, err := p.run(t.Context())
	if err != nil || ok {
		t.Errorf("ok %v, %v", ok, err)
	}
	if m := lastLine.FindStringSubmatch(out.String()); m == nil || m[1] == "0" || m[3] != "0" {
		t.Errorf("the last line is %q", m)
	}
	if !strings.Contains(out.String(), "client ended by itself: signal: killed") {
		t.Error("the end of the client isn't told")
	}
	t.Log(out.String())
}

// Ctrl-C before the callers begin ends all at once.
func TestPlayEndsBeforeItBegins(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an etcd and two processes")
	}
	early, end := context.WithCancel(t.Context())
	end()
	p := &play{cfg: runConfig{duration: time.Minute, noKill: true, callers: 4, replicas: 1}, early: early,
		out: &script{line: func(string) {}}}
	if ok, err := p.run(t.Context()); ok || err == nil || err.Error() != "interrupted" {
		t.Errorf("ok %v, %v", ok, err)
	}
}
