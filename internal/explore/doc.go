// Package explore visits every state that a small group can get into, with the code of package
// orderstate itself, not a model of it, and checks the invariants in each: what holds here holds
// for every interleaving of messages, losses and crashes within a scope.
//
// A [Scope] says how many replicas, sources, calls and faults there are. A state is the real roles,
// what is on its way between them, etcd's record, and what was executed and accepted. Each
// [World.Enabled] action leads to another; [Search] goes breadth first, so that what it reports is
// a shortest trace, in words.
//
//	r := explore.Search(explore.Scopes[0], explore.Limits{States: 1e6})
//	fmt.Println(r)
//
// What is idealised: a lost stream is opened again at once, and carries what a new one does; a
// message is fetched, and an announcement asked for, in one step. All else may be late for ever.
//
// Whom a backup hears is told in packets only in scopes with Attaching. Elsewhere no session can be
// cut off from a backup, and each is attached, there and at the primary, as soon as the backup
// knows where the epoch starts. That loses what comes before: replies that wait for more, and
// takeovers that needn't wait for who was told nothing else. The scopes with Attaching have both;
// for what the others are about, the state in which most may leave is the one to look at.
//
// Two reductions lose no state that matters. An acknowledgement stands for the one before it on its
// link: to deliver that one first is a step of the receiver alone, so it might as well have come
// before the step in which the backup sent the second. And N is fixed in the step that ends the
// last wait: to fix it later is to have had what ended the wait later.
package explore
