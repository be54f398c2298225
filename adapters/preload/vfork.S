/* SPDX-License-Identifier: MIT
 *
 * vfork(): see process.c. The child returns to the caller and goes on to use,
 * and overwrite, the stack below the caller's frame, the place of the return
 * address among it. So across the system call that address lives in a register,
 * of which each process has its own.
 *
 * No shadow-stack property is declared: the child's return would have to be
 * taken off the parent's shadow stack by hand.
 */
#ifdef RP_SHIM_INSIDE
#define HIDE(name) .hidden name
#else
#define HIDE(name)
#endif

#if defined(__x86_64__) && defined(__LP64__)

	.text
	.globl	vfork
	HIDE(vfork)
	.type	vfork, @function
	.p2align 4
vfork:
	.cfi_startproc
	subq	$8, %rsp
	.cfi_adjust_cfa_offset 8
	call	rp_shim_vfork_prepare
	addq	$8, %rsp
	.cfi_adjust_cfa_offset -8
	popq	%rdi
	.cfi_adjust_cfa_offset -8
	.cfi_register %rip, %rdi
	movl	$58		/* SYS_vfork */, %eax
	syscall
	pushq	%rdi
	.cfi_adjust_cfa_offset 8
	.cfi_offset %rip, -8
	movq	%rax, %rdi
	subq	$8, %rsp
	.cfi_adjust_cfa_offset 8
	call	rp_shim_vfork_done
	addq	$8, %rsp
	.cfi_adjust_cfa_offset -8
	ret
	.cfi_endproc
	.size	vfork, .-vfork
	.globl	__vfork
	HIDE(__vfork)
	.set	__vfork, vfork

#elif defined(__aarch64__)

#define CLONE_VM_VFORK_SIGCHLD 0x4111

	.text
	.globl	vfork
	HIDE(vfork)
	.type	vfork, %function
	.p2align 4
vfork:
	.cfi_startproc
	hint	#34			/* bti c */
	stp	x29, x30, [sp, #-16]!
	.cfi_adjust_cfa_offset 16
	.cfi_rel_offset x29, 0
	.cfi_rel_offset x30, 8
	bl	rp_shim_vfork_prepare
	ldp	x29, x30, [sp], #16
	.cfi_adjust_cfa_offset -16
	.cfi_restore x29
	.cfi_restore x30
	mov	x0, #CLONE_VM_VFORK_SIGCHLD
	mov	x1, #0
	mov	x2, #0
	mov	x3, #0
	mov	x4, #0
	mov	x8, #220		/* SYS_clone */
	svc	#0
	stp	x29, x30, [sp, #-16]!
	.cfi_adjust_cfa_offset 16
	.cfi_rel_offset x29, 0
	.cfi_rel_offset x30, 8
	bl	rp_shim_vfork_done
	ldp	x29, x30, [sp], #16
	.cfi_adjust_cfa_offset -16
	.cfi_restore x29
	.cfi_restore x30
	ret
	.cfi_endproc
	.size	vfork, .-vfork
	.globl	__vfork
	HIDE(__vfork)
	.set	__vfork, vfork

#endif

	.section .note.GNU-stack, "", %progbits
