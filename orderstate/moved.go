package orderstate

// Moved is what an event has moved at a replica, and so what its caller owes: whoever waits for it
// is to be woken, or told. Events that the caller handles together add up: With.
type Moved struct {
	// Grown is by how many entries messageOrder is longer (History.Newest): they are to be
	// executed, and acknowledged.
	Grown int
	// Lacks: something that is ordered isn't held; what Lacks names is to be fetched (¶47).
	Lacks bool
	// Stable: the stable point has moved; what is executed up to there may be forgotten (Executed).
	Stable bool
	// Gate: Primary.Held says something else, so that the gate may open (R12.4).
	Gate bool
	// Leave: Primary.MayLeave may say something else, so that replies may leave (R11).
	Leave bool
	// Required: the required set is another one, which the sources are told (R1b).
	Required bool
	// Push: a null message is due (FIG. 7, R4).
	Push bool
}

// With is what two events have moved, one after the other.
func (m Moved) With(next Moved) Moved {
	return Moved{m.Grown + next.Grown, m.Lacks || next.Lacks, m.Stable || next.Stable, m.Gate || next.Gate,
		m.Leave || next.Leave, m.Required || next.Required, m.Push || next.Push}
}
