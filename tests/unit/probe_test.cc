/* SPDX-License-Identifier: MIT
 *
 * The probe: against what this kernel's rings turn out to be, against fake
 * kernels, and where a filter forbids io_uring.
 */
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <set>
#include <string>

#include "public_api.h"

extern "C" {
#include "probe.h"
#include "ring.h"
#include "sys.h"
}
#include "sim/fake_kernel.h"

namespace {

struct ringpoll_probe probe_now()
{
    struct ringpoll_probe probe = {};
    probe.size = sizeof(probe);
    EXPECT_EQ(::ringpoll_get_probe(&probe), 0);
    return probe;
}

int open_fds()
{
    int count = 0;
    for (int fd = 0; fd < 4096; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Runs `body` in a child; its answer is the child's exit status. */
int in_child(const std::function<int()> &body)
{
    pid_t child = fork();
    if (child == 0)
        _exit(body());
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

TEST(Probe, TellsASizeThatItCannotFill)
{
    struct ringpoll_probe probe = {};
    EXPECT_EQ(::ringpoll_get_probe(&probe), -EINVAL);
    probe.size = sizeof(probe) - 1;
    EXPECT_EQ(::ringpoll_get_probe(&probe), -EINVAL);
    EXPECT_EQ(::ringpoll_get_probe(nullptr), -EINVAL);
}

TEST(Probe, ZeroesTheFieldsOfALaterHeader)
{
    struct {
        struct ringpoll_probe probe;
        unsigned char later[32];
    } grown;
    memset(&grown, 0xaa, sizeof(grown));
    grown.probe.size = sizeof(grown);
    ASSERT_EQ(::ringpoll_get_probe(&grown.probe), 0);
    EXPECT_EQ(grown.probe.size, sizeof(grown));
    for (unsigned char byte : grown.later)
        EXPECT_EQ(byte, 0);
}

TEST(Probe, AnswersYesOrAnErrorForEachFeature)
{
    struct ringpoll_probe probe = probe_now();
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        bool has = probe.kernel >> i & 1;
        EXPECT_EQ(has, probe.feature_error[i] == 0) << ringpoll_feature_name(i);
        EXPECT_LE(probe.feature_error[i], 0) << ringpoll_feature_name(i);
        EXPECT_NE(probe.feature_error[i], -EPROTO) << ringpoll_feature_name(i) << " is there and does another thing";
        EXPECT_NE(probe.feature_error[i], -ETIME) << ringpoll_feature_name(i) << " is there and does nothing";
    }
    for (unsigned i = RINGPOLL_FEATURE_COUNT; i < 64; i++)
        EXPECT_EQ(probe.feature_error[i], 0);
    EXPECT_EQ(probe.kernel >> RINGPOLL_FEATURE_COUNT, 0u);
    EXPECT_EQ(probe.usable, rp_probe_close_over(probe.kernel, probe.masked));
    EXPECT_EQ((probe.kernel & RINGPOLL_FEATURE_URING) != 0, probe.error == 0);
}

TEST(Probe, AgreesWithTheRingThatIsMade)
{
    struct ringpoll_probe probe = probe_now();
    if (probe.error)
        GTEST_SKIP() << "no io_uring here: " << strerror(-probe.error);
    rp_ring ring;
    rp_ring_options options = {};
    options.sq_entries = 8;
    options.cq_entries = 32;
    options.features = all_features;
    options.single_thread = true;
    ASSERT_EQ(rp_ring_init(&ring, &options), 0);
    uint64_t missing = ring.features & ~probe.kernel;
    EXPECT_EQ(missing, 0u) << "a ring claims what the probe did not find";
    const uint64_t not_at_once = RINGPOLL_FEATURE_COOP | RINGPOLL_FEATURE_SQPOLL; /* beside DEFER */
    EXPECT_EQ(probe.kernel & ~ring.features & ~not_at_once & ~(RINGPOLL_FEATURE_NAPI | RINGPOLL_FEATURE_RESIZE | RINGPOLL_FEATURE_RECV_END),
              0u)
        << "a ring makes no use of what the probe found";
    rp_ring_fini(&ring);
}

TEST(Probe, LeavesNoDescriptorAndFindsTheSameAgain)
{
    struct ringpoll_probe first = probe_now();
    int before = open_fds();
    for (int i = 0; i < 5; i++) {
        struct ringpoll_probe again = probe_now();
        EXPECT_EQ(again.kernel, first.kernel);
    }
    EXPECT_EQ(open_fds(), before);
}

/* ------------------------------------------------------------ other kernels */

TEST(ProbeOnFakeKernel, FindsTheSetupFlagsOfEachRelease)
{
    const uint64_t flags = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_SINGLE_ISSUER | RINGPOLL_FEATURE_COOP |
                           RINGPOLL_FEATURE_TASKRUN_FLAG | RINGPOLL_FEATURE_SUBMIT_ALL | RINGPOLL_FEATURE_CQSIZE |
                           RINGPOLL_FEATURE_CLAMP | RINGPOLL_FEATURE_SQPOLL | RINGPOLL_FEATURE_NO_SQARRAY;
    struct {
        unsigned version;
        const char *mask;
    } const releases[] = {{601, "as-6.1"}, {519, "as-5.19"}, {513, "as-5.13"}, {510, "as-5.10"}};
    for (const auto &release : releases) {
        SCOPED_TRACE(release.mask);
        sim::FakeKernel kernel(release.version);
        struct ringpoll_probe probe = probe_now();
        uint64_t masked = 0;
        ASSERT_EQ(ringpoll_mask_parse(release.mask, &masked, nullptr, nullptr), 0);
        EXPECT_EQ(probe.kernel & flags, flags & ~masked) << "the mask's words mean what the release is";
        EXPECT_EQ(kernel.rings(), 0u);
        EXPECT_EQ(kernel.mappings(), 0u);
    }
}

TEST(ProbeOnFakeKernel, TellsAFeatureThatDoesNothing)
{
    sim::FakeKernel kernel; /* arms every poll, and none ever fires */
    struct ringpoll_probe probe = probe_now();
    EXPECT_EQ(probe.error, 0);
    EXPECT_FALSE(probe.kernel & RINGPOLL_FEATURE_MULTISHOT_POLL);
    EXPECT_EQ(probe.feature_error[13], -ETIME);
    EXPECT_FALSE(probe.usable & RINGPOLL_FEATURE_POLL_UPDATE);
    EXPECT_EQ(kernel.rings(), 0u);
    EXPECT_EQ(kernel.mappings(), 0u);
}

TEST(ProbeOnFakeKernel, SurvivesEveryFailingAllocation)
{
    for (unsigned n = 1;; n++) {
        sim::FaultyKernel faulty(sim::fault_allocations, n, -ENOMEM);
        int before = open_fds();
        struct ringpoll_probe probe = {};
        probe.size = sizeof(probe);
        ASSERT_EQ(::ringpoll_get_probe(&probe), 0);
        EXPECT_EQ(open_fds(), before) << "allocation " << n;
        if (!faulty.failed())
            break;
        ASSERT_LT(n, 1000u);
    }
}

TEST(ProbeOnFakeKernel, SurvivesEveryFailingRegistrationAndEnter)
{
    for (int error : {-EINVAL, -EAGAIN, -EINTR, -ENXIO})
        for (unsigned n = 1;; n++) {
            sim::FaultyKernel faulty(sim::fault_register | sim::fault_enter, n, error);
            int before = open_fds();
            struct ringpoll_probe probe = {};
            probe.size = sizeof(probe);
            ASSERT_EQ(::ringpoll_get_probe(&probe), 0);
            EXPECT_EQ(open_fds(), before) << "call " << n << ", " << strerror(-error);
            if (!faulty.failed())
                break;
            ASSERT_LT(n, 1000u);
        }
}

/* ------------------------------------------------------------------- knobs */

TEST(Knob, IsNamedForEachError)
{
    EXPECT_EQ(rp_probe_knob(0), RINGPOLL_KNOB_NONE);
    EXPECT_EQ(rp_probe_knob(-ENOMEM), RINGPOLL_KNOB_MEMLOCK);
    EXPECT_EQ(rp_probe_knob(-EMFILE), RINGPOLL_KNOB_FILES);
    EXPECT_EQ(rp_probe_knob(-ENFILE), RINGPOLL_KNOB_FILES);
    EXPECT_EQ(rp_probe_knob(-EINVAL), RINGPOLL_KNOB_KERNEL);
    EXPECT_EQ(rp_probe_knob(-EACCES), RINGPOLL_KNOB_SECCOMP);
}

TEST(Knob, HasAPhraseOfItsOwn)
{
    std::set<std::string> phrases;
    for (uint32_t knob = RINGPOLL_KNOB_NONE; knob <= RINGPOLL_KNOB_BUILD; knob++) {
        ASSERT_NE(ringpoll_knob_text(knob), nullptr);
        EXPECT_TRUE(phrases.insert(ringpoll_knob_text(knob)).second) << knob;
    }
    EXPECT_NE(ringpoll_knob_text(~0u), nullptr);
}

bool sysctl_disables()
{
    char digit = '0';
    int fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, &digit, 1) != 1)
        digit = '0';
    if (fd >= 0)
        close(fd);
    return digit != '0';
}

/* As Docker's default filter does, or as others do: io_uring's calls answer `error`. */
int forbid_io_uring(int error)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, RP_SYS_IO_URING_SETUP, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, RP_SYS_IO_URING_REGISTER, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (static_cast<unsigned>(error) & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof(program) / sizeof(program[0]), program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0 ? 0 : -errno;
}

TEST(Knob, AFilterIsFoundOut)
{
    if (sysctl_disables())
        GTEST_SKIP() << "kernel.io_uring_disabled is set here";
    for (int error : {EPERM, ENOSYS}) {
        int status = in_child([error] {
            if (forbid_io_uring(error) < 0)
                return 77;
            struct ringpoll_probe probe = {};
            probe.size = sizeof(probe);
            if (::ringpoll_get_probe(&probe) != 0)
                return 1;
#ifdef RINGPOLL_WITHOUT_URING
            if (probe.error != -ENOSYS || probe.knob != RINGPOLL_KNOB_BUILD)
                return 2;
#else
            if (probe.error != -error)
                return 3;
            if (probe.knob != RINGPOLL_KNOB_SECCOMP)
                return 4;
#endif
            if (probe.kernel || probe.usable)
                return 5;
            for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++)
                if (probe.feature_error[i] != probe.error)
                    return 6;
            return 0;
        });
        if (status == 77)
            GTEST_SKIP() << "no seccomp filters here";
        EXPECT_EQ(status, 0) << strerror(error);
    }
}

TEST(Knob, ALimitOnFilesIsFoundOut)
{
    EXPECT_EQ(in_child([] {
                  struct rlimit limit;
                  if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
                      return 1;
                  int lowest = dup(0);
                  if (lowest < 0)
                      lowest = open("/dev/null", O_RDONLY);
                  close(lowest);
                  limit.rlim_cur = static_cast<rlim_t>(lowest);
                  if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
                      return 2;
                  struct ringpoll_probe probe = {};
                  probe.size = sizeof(probe);
                  if (::ringpoll_get_probe(&probe) != 0)
                      return 3;
                  if (probe.error == -ENOSYS || probe.error == -EPERM)
                      return 0; /* nothing to find out here */
                  return probe.error == -EMFILE && probe.knob == RINGPOLL_KNOB_FILES ? 0 : 4;
              }),
              0);
}

} // namespace
