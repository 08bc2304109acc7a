package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/understudy-rpc/understudy/internal/etcdnode"
	"github.com/understudy-rpc/understudy/internal/process"
)

// A play is one run of the whole: an etcd, the replicas, a client, and somebody who kills.
type play struct {
	cfg   runConfig
	early context.Context // ends at Ctrl-C: then the run ends early, but in order

	group  group
	client *child
	began  time.Time // when the callers began
	last   stats     // the client's newest; show's, then judge's

	mu        sync.Mutex // guards what follows
	out       io.Writer
	kills     []kill
	failovers []failover
}

// How long the parts of a run may take.
const (
	startTimeout  = 30 * time.Second
	stopTimeout   = callTimeout + 5*time.Second
	settleTimeout = 20 * time.Second
	allTimeout    = 2 * time.Minute // on top of the duration
	restartAfter  = time.Second     // a replica that was killed
)

// say writes one line among those of the seconds.
func (p *play) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "     "+format+"\n", args...)
}

// line writes one line.
func (p *play) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// run plays, and says whether nothing failed, was lost or duplicated. An error says that the
// callers never began.
func (p *play) run(ctx context.Context) (ok bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.cfg.duration+allTimeout, errors.New("the run takes far too long"))
	defer cancel()
	kills := fmt.Sprintf("the primary is killed every %v", p.cfg.killEvery)
	if p.cfg.noKill {
		kills = "nobody is killed"
	}
	p.line("%d replicas at level %v, %d callers for %v, %s", p.cfg.replicas, p.cfg.level, p.cfg.callers, p.cfg.duration,
		kills)

	etcd, name := p.cfg.etcd, fmt.Sprintf("%s-%08x", defaultGroup, rand.Uint32())
	if etcd == "" {
		e, err := etcdnode.Start(ctx, etcdnode.Config{})
		if err != nil {
			return false, err
		}
		defer e.Stop()
		etcd, name = e.Addr, defaultGroup
	}
	stop, err := p.start(ctx, etcd, name)
	defer stop()
	if err != nil {
		return false, err
	}
	problem := p.load(ctx)
	return p.judge(ctx, problem), nil
}

// start starts the replicas and the client. stop, which isn't nil, ends all that was started.
func (p *play) start(ctx context.Context, etcd, name string) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var supervising sync.WaitGroup
	var logs []*os.File
	stop = func() {
		cancel()
		if p.client != nil {
			p.client.End(time.Second)
		}
		supervising.Wait()
		for _, f := range logs {
			f.Close()
		}
	}
	common := []string{"--control", "--etcd", etcd, "--group", name}
	if p.cfg.logs != "" {
		common = append(common, "--verbose")
	}
	for i := range p.cfg.replicas {
		m := &member{name: string(rune('a' + i)), event: p.unasked, say: p.say, rest: restartAfter}
		peers, err := freeAddr()
		if err != nil {
			return stop, err
		}
		m.args = append([]string{"replica", "--name", m.name, "--peers", peers, "--level", p.cfg.level.String()},
			common...)
		if p.cfg.logs != "" {
			f, err := os.Create(filepath.Join(p.cfg.logs, m.name+".log"))
			if err != nil {
				return stop, err
			}
			logs, m.logs = append(logs, f), f
		}
		p.group = append(p.group, m)
		supervising.Go(func() { m.supervise(ctx) })
	}
	var clientLogs io.Writer
	if p.cfg.logs != "" {
		f, err := os.Create(filepath.Join(p.cfg.logs, "client.log"))
		if err != nil {
			return stop, err
		}
		logs, clientLogs = append(logs, f), f
	}
	args := append([]string{"client", "--callers", fmt.Sprint(p.cfg.callers)}, common...)
	spec := process.Spec{Name: "client", Args: args, Copy: clientLogs}
	if p.client, err = process.Talk[command](spec, p.unasked); err != nil {
		return stop, err
	}

	starting, done := context.WithTimeout(ctx, startTimeout)
	defer done()
	defer context.AfterFunc(p.early, done)()
	if _, err := p.group.await(starting, view.whole); err != nil {
		if p.early.Err() != nil {
			return stop, errors.New("interrupted")
		}
		err = fmt.Errorf("the replicas haven't come together: %w", err)
		for _, m := range p.group {
			if now := m.process(); now != nil && now.Log() != "" {
				err = fmt.Errorf("%w\n%s logged:\n%s", err, m.name, now.Log())
			}
		}
		return stop, err
	}
	return stop, nil
}

// freeAddr is an address that all processes of one name have for the other replicas: so the next
// one has the name at once, since it is itself who answers where the last one was.
func freeAddr() (string, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return lis.Addr().String(), lis.Close()
}

// unasked takes what the children say unasked.
func (p *play) unasked(e event) {
	if e.Failover == nil {
		return
	}
	p.say("%s", failoverLine(*e.Failover))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failovers = append(p.failovers, *e.Failover)
}

// load lets the callers call, for the duration or until Ctrl-C, while a line a second is shown and
// the primary killed.
func (p *play) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.duration)
	defer cancel()
	p.began = time.Now()
	p.last.At = p.began
	if _, err := p.client.Ask(ctx, command{Do: doStart}); err != nil {
		return err
	}
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { p.show(ctx) })
	if !p.cfg.noKill {
		working.Go(func() { p.killPrimaries(ctx) })
	}
	select {
	case <-ctx.Done():
	case <-p.early.Done():
		p.say("interrupted: once more leaves at once")
	case <-p.client.Done:
		return p.client.Why()
	}
	return nil
}

// show writes a line a second until ctx ends.
func (p *play) show(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var v view
		var asking sync.WaitGroup
		asking.Go(func() { v = p.group.view(ctx) })
		e, err := p.ask(ctx, askTimeout, command{Do: doStats})
		asking.Wait()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			p.say("%v", err)
		case e.Stats != nil:
			p.line("%s   %v", statsLine(p.began, p.last, *e.Stats), v)
			p.last = *e.Stats
		}
	}
}

// killPrimaries kills the primary each period, if the group is whole again by the end of that
// period: with somebody missing, another death could be the group's, which would show nothing.
func (p *play) killPrimaries(ctx context.Context) {
	// Nobody is killed who wouldn't be started again: what follows would not be seen.
	last := p.began.Add(p.cfg.duration - restartAfter)
	for due := p.began.Add(p.cfg.killEvery); !due.After(last); due = due.Add(p.cfg.killEvery) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(due)):
		}
		waiting, cancel := context.WithDeadline(ctx, due.Add(p.cfg.killEvery))
		v, err := p.group.await(waiting, view.whole)
		cancel()
		if ctx.Err() != nil || err == nil && time.Now().After(last) {
			return
		}
		if err != nil {
			p.say("skipped a kill: %v", err)
			continue
		}
		p.kill(v)
	}
}

// kill kills who leads.
func (p *play) kill(v view) {
	leader, _ := v.leader()
	for _, m := range p.group {
		if m.name != leader.name {
			continue
		}
		if at, ok := m.kill(); ok {
			p.mu.Lock()
			p.kills = append(p.kills, kill{m.name, at})
			p.mu.Unlock()
			p.say("kill -9 %s", m.name)
		}
	}
}

// judge lets the last calls end, compares what the callers know with the state of every replica,
// and writes the table and the last line. When something of it can't be had, it goes on with what
// there is, but doesn't call it ok.
func (p *play) judge(ctx context.Context, problems ...error) (ok bool) {
	t := tally{Calls: p.last.Calls, Failed: p.last.Failed}
	var found verdict
	if e, err := p.ask(ctx, stopTimeout, command{Do: doStop}); err != nil || e.Tally == nil {
		problems = append(problems, fmt.Errorf("what the callers know is unknown: %w", err))
	} else {
		t = *e.Tally
		var errs []error
		found, errs = p.compare(ctx, t.Accounts)
		problems = append(problems, errs...)
	}

	p.mu.Lock()
	table := rows(p.kills, p.failovers)
	p.mu.Unlock()
	if len(table) > 0 {
		problems = append(problems, p.fillGaps(ctx, table))
	}
	if ctx.Err() != nil {
		problems = []error{context.Cause(ctx)} // whatever else it says follows from that
	}
	problem := errors.Join(problems...)

	p.mu.Lock()
	defer p.mu.Unlock()
	o := newOutcome(t, found, table)
	fmt.Fprintln(p.out)
	t.print(p.out)
	found.print(p.out)
	if problem != nil {
		fmt.Fprintln(p.out, problem)
	}
	printTable(p.out, p.began, table)
	fmt.Fprintln(p.out, o)
	return o.ok() && problem == nil
}

// compare waits until all replicas have executed equally far, and judges by the state of each.
func (p *play) compare(ctx context.Context, accounts map[string]account) (verdict, []error) {
	settling, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	v, err := p.group.await(settling, view.even)
	states, errs := p.group.dumps(ctx)
	if err != nil {
		errs = append(errs, fmt.Errorf("the replicas haven't settled: %w", err))
	}
	return judge(accounts, states, reference(v, states)), errs
}

// ask asks the client.
func (p *play) ask(ctx context.Context, timeout time.Duration, c command) (event, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return p.client.Ask(ctx, c)
}

// fillGaps asks the client for the longest calls.
func (p *play) fillGaps(ctx context.Context, table []row) error {
	var marks []time.Time
	for _, r := range table {
		marks = append(marks, r.at)
	}
	e, err := p.ask(ctx, 5*time.Second, command{Do: doGaps, Marks: marks})
	if err != nil {
		return err
	}
	if len(e.Gaps) != len(marks) {
		return fmt.Errorf("client: %d gaps for %d failovers", len(e.Gaps), len(marks))
	}
	for i := range table {
		table[i].longest = e.Gaps[i]
	}
	return nil
}

// reference is the replica whose state the others are compared with: the primary, if its state is
// known.
func reference(v view, states map[string]map[string]uint64) string {
	leader, _ := v.leader()
	if _, ok := states[leader.name]; ok {
		return leader.name
	}
	for _, r := range v {
		if _, ok := states[r.name]; ok {
			return r.name
		}
	}
	return ""
}
