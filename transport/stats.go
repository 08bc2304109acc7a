package transport

import "sync/atomic"

// Stats is what a ClientConn to a group knows, and has counted since it began.
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

// A Monitor reads what one ClientConn counts: give it to WithMonitor. The zero value is ready. It
// may be used concurrently, and after the ClientConn was closed.
type Monitor struct {
	client atomic.Pointer[client]
}

// Stats returns what was counted until now; zeros for a Monitor that no ClientConn has.
func (m *Monitor) Stats() Stats {
	c := m.client.Load()
	if c == nil {
		return Stats{}
	}
	s := c.source.Stats()
	return Stats{
		Primary: s.Primary, Epoch: s.Epoch, Session: s.Session, Retained: s.Retained,
		Calls: c.calls.Load(), Reissued: s.Reissued, Fenced: s.Fenced, Expired: s.Expired, Failovers: s.Failovers,
		Malformed: s.Malformed, Lost: s.Lost,
	}
}
