package topic

// fewValues is up to how many values a set searches one by one.
const fewValues = 16

// set is a list without duplicates. A large one has an index besides: when
// 100,000 clients of one filter leave, each must be found at once.
type set[V comparable] struct {
	list  []V
	index map[V]int // place in list; nil while the list is short
}

func (s *set[V]) len() int { return len(s.list) }

func (s *set[V]) find(v V) (int, bool) {
	if s.index != nil {
		i, ok := s.index[v]
		return i, ok
	}
	for i := range s.list {
		if s.list[i] == v {
			return i, true
		}
	}
	return 0, false
}

func (s *set[V]) add(v V) bool {
	if _, ok := s.find(v); ok {
		return false
	}
	s.list = append(s.list, v)
	switch {
	case s.index != nil:
		s.index[v] = len(s.list) - 1
	case len(s.list) > fewValues:
		s.index = make(map[V]int, 2*fewValues)
		for i, v := range s.list {
			s.index[v] = i
		}
	}
	return true
}

// remove moves the last value into the gap; order means nothing here.
func (s *set[V]) remove(v V) bool {
	i, ok := s.find(v)
	if !ok {
		return false
	}
	last := len(s.list) - 1
	moved := s.list[last]
	s.list[i] = moved
	clear(s.list[last:])
	s.list = s.list[:last]
	if s.index != nil {
		s.index[moved] = i // before delete: moved may be v
		delete(s.index, v)
	}
	switch {
	case last == 0:
		*s = set[V]{}
	case last <= fewValues/2 && cap(s.list) > fewValues:
		s.list = append(make([]V, 0, fewValues), s.list...)
		s.index = nil
	case last <= fewValues/2:
		s.index = nil
	}
	return true
}

func (s *set[V]) each(fn func(V)) {
	for _, v := range s.list {
		fn(v)
	}
}
