//! The example of the README does what it says.

#[path = "../examples/product.rs"]
mod product;

#[test]
fn the_example_finds_its_products_right() {
    product::main();
}
