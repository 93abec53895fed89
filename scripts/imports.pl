#!/usr/bin/perl
# imports.pl FOLDER [LAYER…]: fails if files below FOLDER import each other in a circle, or if a module imports one that is
# not to its left in the list of layers (modules of one layer are separated by commas, and do not import each other).
#
# FOLDER is the root of a crate. Only imports by `crate::` and, of a file that lies beside, `super::` count; what a
# mod.rs hands on is no import.
use strict;
use warnings;

my ($root, @layers) = @ARGV or die "usage: imports.pl FOLDER [LAYER…]\n";
my %layer;
for my $at (0 .. $#layers) { $layer{$_} = $at for split /,/, $layers[$at] }

# The files by their module paths, such as node/task.
my %files;
open my $found, '-|', 'find', $root, '-name', '*.rs' or die "find: $!\n";
while (my $file = <$found>) {
	chomp $file;
	my ($module) = $file =~ m{^\Q$root\E/(.*)\.rs$};
	$files{$module =~ s{/mod$}{}r} = $file;
}

# The longest beginning of a path that is a module of the crate.
sub module_of {
	my @path = @_;
	while (@path) {
		my $module = join '/', @path;
		return $module if $files{$module};
		pop @path;
	}
	return;
}

# The paths of a tree such as a::{b, c::{d, e}}.
sub paths {
	my ($before, $tree) = @_;
	my @paths;
	while ($tree =~ /\G\s*((?:[^{},]|(\{(?:[^{}]|(?-1))*\}))+)\s*,?/g) {
		my $path = $before . $1;
		push @paths, $path =~ /^(.*?)\{(.*)\}\s*$/s ? paths($1, $2) : $path;
	}
	return @paths;
}

my (%imports, @bad);
for my $module (sort keys %files) {
	open my $file, '<', $files{$module} or die "$files{$module}: $!\n";
	my $text = do { local $/; <$file> };
	$text =~ s{//[^\n]*|/\*.*?\*/}{}gs;
	my @here = split m{/}, $module;
	my $is_mod = $files{$module} =~ m{/mod\.rs$};
	my @paths = map { paths('', $_) } $text =~ /\buse\s+((?:crate|super)::[^;]*);/g;
	$text =~ s/\buse\s[^;]*;//g;
	push @paths, $text =~ /\b((?:crate|super)::[\w:]+)/g;
	for (@paths) {
		s/\s+as\s+.*//s;
		my @path = grep { length } split /\s*::\s*/, s/^\s+|\s+$//gr;
		my $first = shift @path;
		next if $first eq 'super' && $is_mod;
		unshift @path, @here[0 .. $#here - 1] if $first eq 'super';
		my $to = module_of(@path) // next;
		# What a folder offers is its mod.rs's, which hands on what its files have.
		next if $module =~ m{^\Q$to\E(/|$)} || $to =~ m{^\Q$module\E/};
		$imports{$module}{$to} = 1;
		my ($from_top, $to_top) = ($here[0], (split m{/}, $to)[0]);
		next if $from_top eq $to_top || !@layers;
		for ($from_top, $to_top) { die "$root: say where $_ belongs\n" unless defined $layer{$_} || $_ =~ /^(lib|main)$/ }
		push @bad, "$files{$module} imports $to_top" if $from_top ne 'lib' && $layer{$to_top} >= $layer{$from_top};
	}
}

# Depth first; what is met again on the way down closes a circle.
my (%state, @way);
sub visit {
	my ($module) = @_;
	if (($state{$module} // '') eq 'open') {
		my ($from) = grep { $way[$_] eq $module } 0 .. $#way;
		push @bad, "a circle of imports: " . join(' → ', @way[$from .. $#way], $module);
		return;
	}
	return if $state{$module};
	$state{$module} = 'open';
	push @way, $module;
	visit($_) for sort keys %{ $imports{$module} // {} };
	pop @way;
	$state{$module} = 'done';
}
visit($_) for sort keys %files;
print STDERR "$_\n" for @bad;
exit !!@bad;
