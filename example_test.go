package understudy_test

import (
	"context"
	"fmt"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/turn"
	"github.com/understudy-rpc/understudy/orderstate"
)

// Every replica takes the same turn, so every one draws the same card at the same time.
func ExampleRand() {
	draw := func(ctx context.Context) { // part of a handler
		fmt.Println("card", understudy.Rand(ctx).IntN(52), "at", understudy.Now(ctx).Format("15:04:05.000"))
	}
	order := orderstate.OrderInfo{OrderNum: 7, First: 3, Time: 1_700_000_000_123_456}
	for range 3 { // a primary and two backups
		draw(turn.New("/casino.Table/Draw", order, []byte("the group's secret")).Context())
	}
	// Output:
	// card 35 at 22:13:20.123
	// card 35 at 22:13:20.123
	// card 35 at 22:13:20.123
}

func ExampleParseLevel() {
	level, err := understudy.ParseLevel("stable")
	fmt.Println(level, err)
	// Output: Stable <nil>
}
