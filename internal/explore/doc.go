// Package explore visits every state that a small group can get into, with the code of package orderstate itself, not a model of it, and checks the invariants in each: what holds here holds for
// every interleaving of messages, losses and crashes within a scope.
//
// A [Scope] says how many replicas, sources, calls and faults there are. A state is the real roles, what is on its way between them, etcd's record, and
// what was executed and accepted. Each [World.Enabled] action leads to another; [Search] goes breadth first, so that what it reports is a shortest trace, in words.
//
//	r := explore.Search(explore.Scopes[0], explore.Limits{States: 1e6})
//	fmt.Println(r)
//
// What is idealised: a lost stream is opened again at once, and carries what a new one does; a message is fetched, and an announcement asked for, in one step; acknowledgements follow each other
// at once, and the last on a link stands for those before it. All else may be late for ever.
package explore
