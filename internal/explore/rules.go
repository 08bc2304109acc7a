package explore

// rule names what can be taken away, by without.
type rule string

// The rules that are a runtime's to keep, and the parts of orderstate's rules that are. Mutants has
// a row for each.
const (
	r1bPushed    rule = "R1b: a change of the required set is pushed"
	r2Sent       rule = "R2: what was sent isn't held"
	fig8Stays    rule = "FIG. 8: what is reflected stays"
	r4           rule = "R4"
	r8Former     rule = "R8: the former primary leaves in-sync"
	r10          rule = "R10"
	r11Reads     rule = "R11: reads wait for the deaf"
	r11Follows   rule = "R11: the confirmation follows what replies depend on"
	r124Calls    rule = "R12.4: calls wait at Stable, as reads do"
	r13EtcdFirst rule = "R13: etcd first, when a replica is evicted"
	r13Counted   rule = "R13: a joiner is counted before it is in-sync"
	r13Holds     rule = "R13: a joiner holds all that is ordered before it is in-sync"
	r13Stable    rule = "R13: its snapshot is stable before a joiner is in-sync"
)
