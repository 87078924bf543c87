// Types that collective.cpp and buckets.cpp share.
#pragma once

#include <chrono>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

struct Store {
	c10::intrusive_ptr<c10d::Store> store;
};

struct Group {
	c10::intrusive_ptr<c10d::Backend> backend;
};

// An operation in progress. It keeps its tensors alive.
struct Work {
	c10::intrusive_ptr<c10d::Work> work;
	std::vector<at::Tensor> tensors;
};

// Waits at most `limit`. Returns whether the operation is complete.
//
// Throws if the operation has failed.
inline bool wait_for(c10d::Work &work, std::chrono::milliseconds limit) {
	try {
		work.wait(limit);
		return true;
	} catch (...) {
		// c10d reports both a time limit and a failure by an exception. A failed operation is complete.
		if (work.isCompleted())
			throw;
		return false;
	}
}
