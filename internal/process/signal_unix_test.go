//go:build unix

package process

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestStoppedProcessGoesOn(t *testing.T) {
	t.Parallel()
	p, _ := startTalk(t, "still", "here")
	<-p.Begun
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := p.Ask(ctx, command{"say"})
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("it answers while it is stopped: %v", err)
	case <-time.After(50 * time.Millisecond): // real: the process isn't in this one
	}
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := p.Continue(); err != nil {
		t.Fatal(err)
	}
	if e, err := p.Ask(t.Context(), command{"say"}); err != nil || e.Said != "still here" {
		t.Errorf("%+v, %v", e, err)
	}
	if err := p.Terminate(); err != nil {
		t.Fatal(err)
	}
	<-p.Done
	if p.Err == nil || p.Err.Error() != "signal: terminated" {
		t.Errorf("it ended with %v", p.Err)
	}
}

func TestQuitTellsOfGoroutines(t *testing.T) {
	t.Parallel()
	p, _ := startTalk(t)
	<-p.Begun
	p.Quit()
	if !p.Ended() || !strings.Contains(p.Log(), "goroutine") {
		t.Errorf("%v\n%s", p.Err, p.Log())
	}
}
