package source

import (
	"slices"
	"time"
)

// This file has calls that may be the reason for which primaries die: a request that ends the
// process which executes it would end one replica after the other. Which of the calls in flight it
// is nobody knows, until one is alone.

// away is how long a primary's stream stays away before the last death of a suspect counts, while
// no other primary is known.
const away = time.Second

// brokeOff notes that the connection broke with an attempt of the present epoch.
func (k *call) brokeOff() {
	src := k.session.of
	if n := len(k.deaths); src.primary.IsZero() || k.try.epoch != k.session.source.Epoch() || n > 0 &&
		k.deaths[n-1].epoch == k.try.epoch {
		return
	}
	k.deaths = append(k.deaths, death{k.try.epoch, src.primary, src.elapsed()})
}

// died names the primaries whose processes have died with this call: not those whose stream is
// there, nor those that have ended it in order (a stop, an eviction, another primary).
func (k *call) died() (names []string) {
	src := k.session.of
	for i, d := range k.deaths {
		lives := slices.ContainsFunc(src.links, func(l *Link) bool { return l.up && l.peer.member == d.primary })
		early := i == len(k.deaths)-1 && d.epoch == k.session.source.Epoch() && src.elapsed()-d.at < away
		if lives || src.parted[d.primary] || early && i >= 2 {
			continue
		}
		names = append(names, d.primary.Name)
	}
	return names
}

// suspect says what becomes of a call with which primaries may have died. With two it is held back
// until the session's others have ended, but for those that are held back, too; then it is issued
// alone. With a third one it has ended.
func (k *call) suspect() verdict {
	s := k.session
	switch died := k.died(); {
	case len(died) > 2:
		k.reply = reply{err: errPoison(k.Method, died)}
		return verdictUnknown
	case len(died) < 2 || s.over != nil:
		k.trust()
		return verdictRetry
	}
	if !slices.Contains(s.suspects, k) {
		s.suspects = append(s.suspects, k)
		s.of.broadcast() // the others may be alone now
	}
	if k.isAlone() {
		return verdictRetry
	}
	return verdictWait
}

// isAlone says whether it is a suspect's turn.
func (k *call) isAlone() bool {
	s := k.session
	for other := range s.inFlight {
		if !slices.Contains(s.suspects, other) {
			return false
		}
	}
	return s.suspects[0] == k
}
