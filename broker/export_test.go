package broker

// Pumping says that a session or a shared group reads from the store just now.
func (b *Broker) Pumping() bool {
	b.mu.Lock()
	all := make([]*session, 0, len(b.sessions))
	for _, s := range b.sessions {
		all = append(all, s)
	}
	b.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		running := s.catchUp.running
		s.mu.Unlock()
		if running {
			return true
		}
	}
	if qs := b.groups.queues.Load(); qs != nil {
		for _, q := range *qs {
			if q.running.Load() {
				return true
			}
		}
	}
	return false
}
