package hostnode

import "github.com/azp-scaler/azp-scaler/test/e2e/process"

// Running is a process of a pod: that of a container, or of a container's preStop hook.
type Running struct {
	Job       string // That the pod belongs to, if any.
	Pod       string
	Container string
	Hook      bool

	node    *Node
	process *process.Process
}

// Running lists the processes of all pods at the moment.
func (n *Node) Running() []Running {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []Running
	for _, p := range n.pods {
		p.mu.Lock()
		for _, c := range p.all() {
			for _, one := range []*process.Process{c.process, c.hook} {
				if one != nil && one.Running() {
					all = append(all, Running{
						Job: p.object.Labels[jobLabel], Pod: p.object.Name, Container: c.spec.Name, Hook: one == c.hook, node: n, process: one,
					})
				}
			}
		}
		p.mu.Unlock()
	}
	return all
}

// jobLabel is what the Job controller gives pods.
const jobLabel = "batch.kubernetes.io/job-name"

// Has tells whether the process, or one that it has started, has the socket open.
func (r Running) Has(socket process.Socket) bool { return socket.HeldBy(r.process.PID()) }

// Kill ends the process and all that it has started with SIGKILL, as a node that is out of
// memory does, and waits until they are gone. The pod goes on as after any end of a container.
func (r Running) Kill() { r.node.kill(r.process) }
