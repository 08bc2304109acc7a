package main

import (
	"context"
	"io"
	"net"
	"os"
	"os/signal"

	"github.com/understudy-rpc/understudy/internal/process"
)

// serverMain is the subcommand server: one server of a system, until stdin ends.
func serverMain(cfg serverConfig, in io.Reader, out, _ io.Writer) error {
	signal.Ignore(os.Interrupt) // it is meant for the parent, whose terminal this is
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, _ := findSystem(cfg.system)
	m, app := newMeter(cfg.delay), newAdder()
	app.fill(cfg.filled)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer lis.Close()
	srv, err := s.server(cfg, app, m)
	if err != nil {
		return err
	}
	answer := func(ctx context.Context, c command) (event, error) {
		j, joins := srv.(joiner)
		switch {
		case c.Do == doStanding:
			r := serverReport{Addr: lis.Addr().String(), Standing: srv.standing(), State: srv.state()}
			if joins {
				r.PeerAddr = j.peerAddr()
			}
			if t, ok := srv.(taker); ok {
				r.Failover = t.lastFailover()
			}
			return event{Server: &r}, nil
		case c.Do == doJoin && joins:
			return event{}, j.join(ctx, c.Peers)
		}
		return event{}, process.Unknown(c)
	}
	listening := make(chan error, 1)
	go func() {
		listening <- serve(ctx, in, out, m, answer)
		cancel()
	}()
	if err := srv.serve(ctx, m.listen(lis)); err != nil && ctx.Err() == nil {
		return err
	}
	if ctx.Err() == nil {
		return nil
	}
	return <-listening
}

// A taker is a server that can say how it has taken over; nil if it hasn't.
type taker interface{ lastFailover() *failover }
