#!/usr/bin/perl
# imports.pl FOLDER [LAYER…]: fails if files or modules below FOLDER import each other in a circle, or if a module imports
# one that is not to its left in the list of layers (modules of one layer are separated by commas, and do not import each
# other).
#
# FOLDER is the root of a crate. What a file names is looked up as the compiler does, through every `use` that hands it on,
# to the file which defines it: that is the file which is imported. To hand on is to import, too, but `mod file;` is not.
use strict;
use warnings;

my ($root, @layers) = @ARGV or die "usage: imports.pl FOLDER [LAYER…]\n";
my %layer;
for my $at (0 .. $#layers) { $layer{$_} = $at for split /,/, $layers[$at] }

# The file of each module, those within a file included: /node/task, /node/task/tests. The crate itself is the empty path.
my %file;
open my $found, '-|', 'find', $root, '-name', '*.rs' or die "find: $!\n";
for my $file (sort <$found>) {
	chomp $file;
	$file{$file =~ s{^\Q$root\E|\.rs$}{}gr =~ s{/mod$}{}r} = $file;
}
$file{''} = delete $file{-e "$root/lib.rs" ? '/lib' : '/main'} // die "$root: no lib.rs or main.rs\n";
my %path = reverse %file;

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

# What each module names, its names for what it uses, and what it uses all of.
my (@named, %used, %globs);
for my $file (sort keys %path) {
	open my $opened, '<:utf8', $file or die "$file: $!\n";
	my $text = do { local $/; <$opened> };
	# Comments and literals hold braces and paths that mean nothing.
	$text =~ s{//[^\n]*|/\*.*?\*/|\bb?r(#*)".*?"\g1|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.[^']*)'}{ }gs;
	$text =~ s/\$crate\b/crate/g;
	my @within = $path{$file};
	while ($text =~ /\bmod\s+(\w+)\s*\{|\buse\s+([^;]+);|([{}])|(?<![\w:\$])(\w+(?:::\w+)+)/g) {
		my ($module, $tree, $brace, $path) = ($1, $2, $3, $4);
		my $here = $within[-1];
		if (defined $module) {
			$file{"$here/$module"} = $file;
			push @within, "$here/$module";
		} elsif (defined $brace) {
			$brace eq '{' ? push @within, $here : pop @within;
		} elsif (defined $path) {
			push @named, [$file, $here, split /::/, $path];
		} else {
			for (paths('', $tree)) {
				my $as = s/\s+as\s+(\w+)\s*$// && $1;
				my @path = split /::/, s/\s+//gr;
				pop @path if $path[-1] eq 'self' && @path > 1;
				my $all = $path[-1] eq '*' && pop @path;
				push @named, [$file, $here, @path];
				if ($all) { push @{ $globs{$here} }, \@path } else { $used{$here}{$as || $path[-1]} = \@path }
			}
		}
	}
}

# Where a name of a module leads: to a module, and whether it is that module or something which it defines. Nowhere if the
# name is of another crate.
my %open;
sub look_up {
	my ($module, $name) = @_;
	return ("$module/$name", 1) if $file{"$module/$name"};
	# Modules may use all of each other, and a name as itself.
	return if $open{"$module $name"};
	local $open{"$module $name"} = 1;
	my $path = $used{$module}{$name};
	return resolve($module, @$path) if $path;
	for (@{ $globs{$module} // [] }) {
		my ($to, $is_module) = resolve($module, @$_);
		my @found = $is_module ? look_up($to, $name) : ();
		return @found if @found;
	}
	return;
}

sub resolve {
	my ($module, $first, @rest) = @_;
	my $is_module = 1;
	if ($first eq 'crate') { $module = '' }
	elsif ($first eq 'super') { $module =~ s{/\w+$}{} }
	elsif ($first ne 'self') { ($module, $is_module) = look_up($module, $first) or return }
	for my $name (@rest) {
		last unless $is_module;
		if ($name eq 'super') { $module =~ s{/\w+$}{}; next }
		my @found = look_up($module, $name);
		($module, $is_module) = @found ? @found : ($module, 0);
	}
	return ($module, $is_module);
}

# Files import files; of modules, those import each other that lie beside each other.
my (%imports, %bad);
for (@named) {
	my ($file, $here, @path) = @$_;
	my ($to) = resolve($here, @path) or next;
	my $from = $path{$file};
	$to = $path{ $file{$to} };
	next if $from eq $to;
	$imports{$file}{ $file{$to} } = 1;
	my @from = split m{/}, $from;
	my @to = split m{/}, $to;
	my $beside = 0;
	$beside++ while $beside < @from && $beside < @to && $from[$beside] eq $to[$beside];
	$imports{ join '/', @from[0 .. $beside] }{ join '/', @to[0 .. $beside] } = 1 if $beside < @from && $beside < @to;
	# The crate itself may import all, and is above all.
	next if !@layers || @from < 2 || ($to[1] // '') eq $from[1];
	my ($above, $below) = map { $_ // die "$root: say where the modules of $file belong\n" }
		$layer{ $from[1] }, @to < 2 ? scalar @layers : $layer{ $to[1] };
	$bad{"$file imports $file{$to}, which is not below it"} = 1 if $below >= $above;
}

# Depth first; what is met again on the way down closes a circle.
my (%state, @way);
sub visit {
	my ($node) = @_;
	if (($state{$node} // '') eq 'open') {
		my ($from) = grep { $way[$_] eq $node } 0 .. $#way;
		$bad{ "a circle of imports: " . join(' → ', @way[$from .. $#way], $node) } = 1;
		return;
	}
	return if $state{$node};
	$state{$node} = 'open';
	push @way, $node;
	visit($_) for sort keys %{ $imports{$node} // {} };
	pop @way;
	$state{$node} = 'done';
}
visit($_) for sort keys %imports;
print STDERR "$_\n" for sort keys %bad;
exit !!%bad;
