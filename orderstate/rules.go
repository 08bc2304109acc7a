package orderstate

// rule names what can be taken away, by without.
type rule string

// The rules, by the numbers that the code cites, and by what is claimed. explore.Mutants has a row
// for each.
const (
	r1               rule = "R1"
	r1b              rule = "R1b"
	r1bInEpoch       rule = "R1b: acknowledgements count in their epoch"
	r2HeldFromZero   rule = "R2: held is 0 in a new epoch"
	r3InEpoch        rule = "R3: acknowledgements count in their epoch"
	r3OneReflection  rule = "R3: one source's reflection isn't enough"
	r3EveryBackup    rule = "R3: every in-sync backup"
	r3WithMessage    rule = "R3: held with the message"
	r4               rule = "R4"
	r7FirstEpoch     rule = "R7: Rand is seeded by the epoch of the first order"
	r9Source         rule = "R9: a source accepts no reply from below its epoch"
	r9Backup         rule = "R9: a backup accepts nothing from below its epoch"
	r9DropsVoid      rule = "R9: what is void is dropped"
	i5AnyEpoch       rule = "I5: lost by any later epoch"
	i5Stable         rule = "I5: stable means in every later epoch"
	i5BackupRefuses  rule = "I5: a backup refuses an epoch that lacks what is stable"
	r11Stream        rule = "R11: a stream begins with none attached"
	r11Epoch         rule = "R11: an epoch begins with none attached"
	r11Session       rule = "R11: a session begins detached"
	r11Attached      rule = "R11: who is attached is waited for"
	r11BelowEpoch    rule = "R11: what is below the epoch is held"
	r11Confirmed     rule = "R11: detached when confirmed"
	r11Number        rule = "R11: a confirmation has a number"
	r11Follows       rule = "R11: the confirmation follows what replies depend on"
	r11Replies       rule = "R11: replies wait for the deaf"
	r121Executed     rule = "R12.1: nothing is executed between the answer and the start"
	r121Acknowledged rule = "R12.1: nothing is acknowledged between the answer and the start"
	r122Peers        rule = "R12.2: every in-sync peer answers"
	r122Sessions     rule = "R12.2: every session answers"
	r122Lacked       rule = "R12.2: who is named by what is lacked answers"
	r123Pending      rule = "R12.3: (stable, N] is pending"
	r123Table        rule = "R12.3: the table says what is void"
	r123Highest      rule = "R12.3: the highest epoch wins"
	r124             rule = "R12.4"
)
