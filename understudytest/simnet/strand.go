package simnet

// Strand leaves the connections between two hosts half-open: nothing that an end sends arrives,
// ever, not even that it has closed; nor does anything tell an end. New connections are as ever.
// That is what a NAT does which has forgotten them, or a host that was cut off and has come back at
// once as another.
func (n *Network) Strand(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.local == a && c.remote == b || c.local == b && c.remote == a {
			c.stranded = true
		}
	}
}

// Dials is how often one host has dialled the other, whatever came of it.
func (n *Network) Dials(l Link) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[l]
}
