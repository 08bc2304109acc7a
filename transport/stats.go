package transport

import "sync/atomic"

// Stats is what a Client knows and has counted since it began.
type Stats struct {
	// Primary is the primary as the client knows it, empty while it knows none, and Epoch the epoch
	// that it has acknowledged.
	Primary string
	Epoch   uint64
	// Session is the session's number; 0 while it isn't open.
	Session uint64
	// Retained is the number of bytes that may have to be sent again.
	Retained int

	// Calls were begun; Reissued counts every further attempt of one.
	Calls, Reissued uint64
	// Fenced replies were from an epoch that was over, Expired ones came too late to be known as
	// the primary's.
	Fenced, Expired uint64
	// Failovers counts primaries that took the place of another.
	Failovers uint64
	// Malformed counts messages and trailers that could not be understood.
	Malformed uint64
	// Lost counts sessions that ended with DataLoss.
	Lost uint64
}

// counters are those of Stats; they are counted without a lock.
type counters struct {
	calls, reissued, fenced, expired, failovers, malformed, lost atomic.Uint64
}

// A Monitor reads what one Client counts: give it to WithMonitor. The zero value is ready. It may
// be used concurrently, and after the ClientConn was closed.
type Monitor struct {
	client atomic.Pointer[Client]
}

// Stats returns what was counted until now; zeros for a Monitor that no Client has.
func (m *Monitor) Stats() Stats {
	c := m.client.Load()
	if c == nil {
		return Stats{}
	}
	s := Stats{
		Calls: c.counts.calls.Load(), Reissued: c.counts.reissued.Load(),
		Fenced: c.counts.fenced.Load(), Expired: c.counts.expired.Load(),
		Failovers: c.counts.failovers.Load(), Malformed: c.counts.malformed.Load(), Lost: c.counts.lost.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Primary, s.Epoch = c.primary.Name, uint64(c.session.source.Epoch())
	s.Session, s.Retained = c.session.number, c.session.frames.bytes
	return s
}
