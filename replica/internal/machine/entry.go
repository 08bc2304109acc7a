package machine

import "github.com/understudy-rpc/understudy/orderstate"

// Body is the body of a message that executes a method.
type Body struct {
	Method  string
	Payload []byte
}

// Entry is one of messageOrder, with its message if it has one.
type Entry struct {
	orderstate.Ordered
	Logged orderstate.Message
	said   *Reply
}
