package election_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/understudy-rpc/understudy/election"
)

// What a replica does when it starts; it needs an etcd.
func ExampleNewEtcd() {
	ctx := context.Background()
	client, err := election.Dial([]string{"127.0.0.1:2379"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	e := election.NewEtcd(client, "greeter")
	me := election.Replica{
		Member: election.Member{Name: "host-1", Incarnation: rand.Uint64() | 1},
		Addr:   "host-1:7000", PeerAddr: "host-1:7001",
	}
	self, err := e.Register(ctx, me, election.Member{})
	if err != nil { // a *NameTakenError, for as long as a dead predecessor's lease lives
		fmt.Println(err)
		return
	}
	defer self.Close(ctx)

	epoch, err := e.Create(ctx, election.Group{ID: rand.Uint64() | 1, Level: "stable"}, self)
	switch {
	case err == nil:
		fmt.Println("primary of a new group in epoch", epoch)
	case errors.Is(err, election.ErrExists):
		fmt.Println("join the group")
	case election.IsUnknown(err):
		fmt.Println("Read, and look who is primary")
	}
}
