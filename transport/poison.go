package transport

import (
	"slices"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/orderstate"
)

// This file has calls that may be the reason for which primaries die: a request that ends the
// process which executes it would end one replica after the other. Which of the calls in flight it
// is nobody knows, until one is alone.

// gone is how long a primary's stream stays away before the last death of a suspect counts, while
// no other primary is known.
const gone = time.Second

// death is a primary that broke off while an attempt was with it.
type death struct {
	epoch   orderstate.Epoch
	primary election.Member
	at      time.Duration // by the elapsed clock
}

// brokeOff notes that the connection broke with an attempt of the present epoch. mu is held.
func (k *call) brokeOff() {
	c := k.client
	if n := len(k.deaths); c.primary.IsZero() || k.epoch != k.session.source.Epoch() || n > 0 &&
		k.deaths[n-1].epoch == k.epoch {
		return
	}
	k.deaths = append(k.deaths, death{k.epoch, c.primary, c.cfg.elapsed()})
}

// died names the primaries whose processes have died with this call: not those whose stream is
// there, nor those that have ended it in order (a stop, an eviction, another primary). mu is held.
func (k *call) died() (names []string) {
	c := k.client
	for i, d := range k.deaths {
		lives := slices.ContainsFunc(c.links, func(l *link) bool { return l.up && l.member == d.primary })
		early := i == len(k.deaths)-1 && d.epoch == k.session.source.Epoch() && c.cfg.elapsed()-d.at < gone
		if lives || c.parted[d.primary] || early && i >= 2 {
			continue
		}
		names = append(names, d.primary.Name)
	}
	return names
}

// suspected holds a call back with which two primaries have died, until the session's others have
// ended, but for those that are held back, too; then it is issued alone. With a third one it has
// ended.
func (k *call) suspected() verdict {
	c, s := k.client, k.session
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch died := k.died(); {
		case len(died) > 2:
			k.reply = reply{err: statusPoison(k.method, died)}
			return verdictUnknown
		case len(died) < 2 || s.over != nil:
			s.trust(k)
			return verdictRetry
		}
		if !slices.Contains(s.suspects, k) {
			s.suspects = append(s.suspects, k)
			c.broadcast() // the others may be alone now
		}
		if k.isAlone() {
			return verdictRetry
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-k.ctx.Done():
		case <-c.life.ctx.Done():
		}
		c.mu.Lock()
		if k.ctx.Err() != nil || c.life.ctx.Err() != nil {
			return verdictEnded
		}
	}
}

// isAlone says whether it is a suspect's turn. mu is held.
func (k *call) isAlone() bool {
	s := k.session
	for other := range s.inFlight {
		if !slices.Contains(s.suspects, other) {
			return false
		}
	}
	return s.suspects[0] == k
}

// trust takes a call out of the suspects. mu is held.
func (s *session) trust(k *call) {
	s.suspects = slices.DeleteFunc(s.suspects, func(other *call) bool { return other == k })
}

// parts notes that a replica has ended its stream in order: what breaks off with it has broken off
// for that reason. mu is held.
func (c *Client) parts(m election.Member) {
	const most = 1 << 10
	if len(c.parted) >= most {
		clear(c.parted)
	}
	c.parted[m] = true
}
