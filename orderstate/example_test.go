package orderstate_test

import (
	"fmt"

	"github.com/understudy-rpc/understudy/orderstate"
)

// A primary orders two messages, the reply tells its source, the source reflects it on its next
// message to the backup, and the backup releases both messages in that order, though it received
// them in the other.
func Example() {
	history := func() *orderstate.History {
		h, err := orderstate.NewHistory(0, 0, nil, nil)
		if err != nil {
			panic(err)
		}
		return h
	}
	primary, err := orderstate.NewPrimary(history(), 1, 0, []orderstate.Replica{"S2"}, 32)
	if err != nil {
		panic(err)
	}
	backup, err := orderstate.NewBackup(history(), 1, 1)
	if err != nil {
		panic(err)
	}
	source := orderstate.NewSource()
	source.NewEpoch(1)

	// Opening a session is an entry as any other; its number is its orderNum. Both replicas hold
	// it.
	opened, _, _ := primary.Open(orderstate.Nonce{'n'}, 0, nil, 1000)
	if _, err := backup.Receive(primary.Push(0)); err != nil {
		panic(err)
	}
	for _, id := range backup.Lacks(10) {
		m, _ := primary.History().Has(id)
		backup.Message(m)
	}
	_, held, _ := backup.Acknowledgement()
	if _, err := primary.Acknowledge("S2", 1, held); err != nil {
		panic(err)
	}
	if err := source.Start(1, primary.First(), primary.Stable(), nil); err != nil {
		panic(err)
	}

	message := func(q orderstate.SeqNum, body string) orderstate.Message {
		return orderstate.Message{MessageID: orderstate.MessageID{Session: opened.Session, SeqNum: q}, Body: body}
	}
	m1, m2 := message(1, "m1"), message(2, "m2")

	// The primary receives m1 and m2; the backup m2 and m1.
	primary.Order(m1, 2000)
	last, _, _ := primary.Order(m2, 3000)
	backup.Message(m2)
	backup.Message(m1)

	// The reply to m2 carries the order of both: its source held neither. internal/wire seals it;
	// here the run travels beside.
	run := primary.Multicast(opened.Session, source.HeldUpTo(), last.OrderNum, nil)
	if err := source.Receive(orderstate.Announcement{Envelope: run.Envelope}); err != nil {
		panic(err)
	}
	fmt.Println("the source may", source.Accept(orderstate.Reply{Epoch: 1, OrderNum: last.OrderNum}))

	// The source's next message to the backup reflects it.
	destOrderInfo, _ := source.Multicast(0)
	fmt.Println("the source reflects", destOrderInfo[0].Envelope)
	if _, err := backup.Receive(run); err != nil {
		panic(err)
	}
	for {
		o, m, ok := backup.Next()
		if !ok {
			break
		}
		fmt.Println("the backup executes", o, m.Body)
	}
	// Output:
	// the source may accept
	// the source reflects [2..3]@1
	// the backup executes 1:open <nil>
	// the backup executes 2:1/1 m1
	// the backup executes 3:1/2 m2
}
